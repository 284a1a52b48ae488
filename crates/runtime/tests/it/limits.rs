//! X1: what a machine may use has hard edges, and reaching one hurts only the machine.

use crate::machine::{Machine, exec, wait};

#[tokio::test]
async fn x1_memory_has_a_limit_and_an_oom_kill_is_reported() {
    let Some(machine) = Machine::new("memory") else {
        return;
    };
    let (status, _) = machine.run("exec tail /dev/zero").await;
    assert!(status.oom_killed, "{status:?}");
    assert_eq!((status.code, status.signal), (137, Some(9)));
    machine.assert_clean();
}

#[tokio::test]
async fn x1_processes_have_a_limit() {
    let Some(machine) = Machine::new("processes") else {
        return;
    };
    let instance = machine.boot("sleep 1000").await;
    let script = "for i in $(seq 200); do sleep 100 & done 2>&1; echo made";
    let output = exec(&*instance, script).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains("can't fork"), "{output:?}");
    let stats = instance.stats().await.unwrap();
    assert!(stats.pids <= 64, "{stats:?}");
    assert!(stats.memory_bytes > 0 && stats.memory_max_bytes == 64 << 20, "{stats:?}");
    instance.kill().await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

#[tokio::test]
async fn x1_f6_the_disk_has_a_hard_edge() {
    let Some(machine) = Machine::new("disk") else {
        return;
    };
    let script = "dd if=/dev/zero of=/big bs=1M count=200 2>&1 | grep -o 'No space left on device'; \
         rm /big; sync; echo room > /small && cat /small";
    let (status, output) = machine.run(script).await;
    assert_eq!((status.code, output.as_str()), (0, "No space left on device\nroom\n"));
    let image = std::fs::metadata(&machine.spec.upper).unwrap();
    assert_eq!(image.len(), 64 << 20);
    machine.assert_clean();
}

#[tokio::test]
async fn x1_k10_open_files_and_core_files_have_a_limit() {
    let Some(machine) = Machine::new("files") else {
        return;
    };
    let (_, output) = machine.run("ulimit -n; ulimit -Hn; ulimit -c; ulimit -Hc").await;
    assert_eq!(output, "1024\n1024\n0\n0\n");
}
