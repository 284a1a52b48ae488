//! K and F: the cage as it looks from inside.

use crate::machine::{Machine, exec, wait};

/// Runs a script as root inside a new machine and returns what it wrote.
async fn inside(test: &str, script: &str) -> Option<String> {
    let machine = Machine::new(test)?;
    let (status, output) = machine.run(script).await;
    assert_eq!(status.code, 0, "{output}");
    machine.assert_clean();
    Some(output)
}

#[tokio::test]
async fn k1_paths_that_tell_or_reach_the_host_are_masked_or_read_only() {
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do \
           if [ -e $f ]; then wc -c < $f; fi; done | sort -u; \
         ls /sys/firmware | wc -l; \
         for f in /proc/sysrq-trigger /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern \
           /proc/irq/default_smp_affinity /sys/kernel/mm/ksm/run; do \
           (echo 1 > $f) 2>/dev/null && echo wrote $f; done; \
         grep -c '^proc /proc proc rw' /proc/mounts";
    let Some(output) = inside("k1", script).await else {
        return;
    };
    assert_eq!(output, "0\n0\n1\n");
}

#[tokio::test]
async fn k2_only_the_machines_own_processes_are_seen() {
    let script = "ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm; \
         readlink /proc/1/exe 2>/dev/null; cat /proc/1/environ 2>/dev/null | wc -c";
    let Some(output) = inside("k2", script).await else {
        return;
    };
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() <= 4, "{output}");
    assert_eq!(lines[1..], ["perch-init", "0"], "{output}");
}

#[tokio::test]
async fn k3_no_cgroup_can_be_written() {
    let script = "grep -c 'cgroup.* rw' /proc/mounts; cut -d: -f3 /proc/self/cgroup | sort -u; \
         find / -xdev -name release_agent 2>/dev/null | wc -l";
    let Some(output) = inside("k3", script).await else {
        return;
    };
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines[0], *lines.last().unwrap()), ("0", "0"), "{output}");
    assert!(!output.contains("perch"), "{output}");
}

#[tokio::test]
async fn k4_devices_are_the_harmless_ones_and_none_can_be_made() {
    let script = "find /dev -type b -o -type c | grep -v /dev/pts/ | sort | tr '\\n' ' '; \
         mknod /tmp/disk b 7 0 2>/dev/null && echo made; mknod /tmp/mem c 1 1 2>/dev/null && echo made; \
         echo; ls /dev | tr '\\n' ' '";
    let Some(output) = inside("k4", script).await else {
        return;
    };
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0].trim(), "/dev/full /dev/null /dev/random /dev/tty /dev/urandom /dev/zero");
    assert_eq!(lines.len(), 2, "{output}");
}

#[tokio::test]
async fn k5_capabilities_are_few_and_cannot_grow() {
    let script = "grep -E '^Cap|^NoNewPrivs' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";
    let Some(output) = inside("k5", script).await else {
        return;
    };
    // chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw
    // sys_chroot setfcap
    let all = "00000000800425fb";
    assert_eq!(
        output.trim(),
        format!(
            "CapInh:0000000000000000 CapPrm:{all} CapEff:{all} CapBnd:{all} \
             CapAmb:0000000000000000 NoNewPrivs:1"
        )
    );
}

#[tokio::test]
async fn k6_what_the_filter_refuses_is_refused() {
    let script = "grep Seccomp: /proc/self/status | tr -d '\\t'; \
         mount -t tmpfs none /tmp 2>/dev/null && echo mounted; \
         umount /proc 2>/dev/null && echo unmounted; \
         unshare -U true 2>/dev/null && echo user namespace; \
         unshare -m true 2>/dev/null && echo mount namespace; \
         unshare -n true 2>/dev/null && echo network namespace; \
         nsenter -t 1 -m true 2>/dev/null && echo entered; \
         swapon /tmp 2>/dev/null && echo swap; \
         insmod /tmp/x.ko 2>/dev/null && echo module; \
         pivot_root /tmp /tmp 2>/dev/null && echo pivot; \
         date -s 2000-01-01 >/dev/null 2>&1; [ $(date +%Y) = 2000 ] && echo clock; \
         hostname other 2>/dev/null && echo hostname; \
         dmesg 2>/dev/null | head -1; reboot -f 2>/dev/null && echo reboot; echo done";
    let Some(output) = inside("k6", script).await else {
        return;
    };
    assert_eq!(output, "Seccomp:2\ndone\n");
}

#[tokio::test]
async fn k7_root_inside_is_not_root_outside() {
    let Some(machine) = Machine::new("k7") else {
        return;
    };
    let instance =
        machine.boot("touch /mine; id -u; cat /proc/self/uid_map; exec sleep 1000").await;
    machine.wait_for_output("65536").await;
    let output = machine.output(perch_runtime::log::Stream::Stdout);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "1000000", "65536"]);
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", instance.info().init.pid)).unwrap();
    assert!(status.contains("Uid:\t1000000\t1000000\t1000000\t1000000"), "{status}");
    let inside =
        std::fs::metadata(format!("/proc/{}/root/mine", instance.info().init.pid)).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&inside), 1_000_000);
    instance.kill().await.unwrap();
    wait(&*instance).await;
}

#[tokio::test]
async fn k8_no_descriptor_leaks_into_the_program() {
    let Some(machine) = Machine::new("k8") else {
        return;
    };
    // No pipe here: the shell would hold its ends for a moment. The fourth is the folder that it
    // reads; a leak would move that one further up.
    let script = "for fd in /proc/$$/fd/*; do echo ${fd##*/}; done; echo end; exec sleep 1000";
    let instance = machine.boot(script).await;
    machine.wait_for_output("end").await;
    let output = machine.output(perch_runtime::log::Stream::Stdout);
    assert_eq!(output, "0\n1\n2\n3\nend\n");
    let exec = exec(&*instance, "ls /proc/self/fd | wc -l; ls -l /proc/self/fd").await;
    let text = String::from_utf8_lossy(&exec.stdout).into_owned();
    assert!(text.starts_with("4\n"), "{text}");
    // What init itself holds: its socket, its signals and its three streams.
    let pid = instance.info().init.pid;
    let held = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(held <= 5, "{held}");
    instance.kill().await.unwrap();
    wait(&*instance).await;
}

#[tokio::test]
async fn f1_f2_the_root_is_private_and_no_host_path_is_seen() {
    let script = "cat /proc/self/mountinfo; ls -a / | tr '\\n' ' '";
    let Some(output) = inside("f2", script).await else {
        return;
    };
    for hint in ["/tmp/", "/work", "/var", "perch", "/mnt", "loop", "erofs", "target"] {
        assert!(!output.contains(hint), "{hint}: {output}");
    }
    assert!(output.contains("lowerdir=l,upperdir=d/u,workdir=d/w"), "{output}");

    // Its own layer is behind a loop device, as everybody's are.
    let script = "for f in /sys/block/*/loop/backing_file /sys/class/block/*/loop/backing_file \
           /sys/dev/block/*/loop/backing_file /sys/devices/virtual/block/*/loop/backing_file; do \
           cat $f 2>/dev/null; done; ls /sys/block /sys/devices/virtual/block | grep -c loop";
    let Some(output) = inside("f2: block devices", &format!("{script}; true")).await else {
        return;
    };
    assert_eq!(output, "0\n");
}

#[tokio::test]
async fn t4_a_secret_is_on_no_disk_and_in_no_argument() {
    let Some(machine) = Machine::new("t4") else {
        return;
    };
    let start = perch_runtime::GuestStart {
        env: crate::machine::env(&[("TOKEN", "hunter2-secret")]),
        ..crate::machine::shell("echo up; exec sleep 1000")
    };
    let instance = machine.boot_with(start).await;
    machine.wait_for_output("up").await;
    let folder = crate::machine::path(machine.folder.path()).to_owned();
    let found = std::process::Command::new("grep")
        .args(["-rl", "hunter2-secret", &folder])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    for pid in [instance.info().init.pid, instance.info().monitor.pid] {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&text).contains("hunter2-secret"));
        }
    }
    instance.kill().await.unwrap();
    wait(&*instance).await;
}

#[tokio::test]
async fn only_a_layer_that_outlives_its_boot_is_forced_to_the_disk() {
    for scratch in [true, false] {
        let Some(mut machine) = Machine::new("layer") else {
            return;
        };
        machine.spec.scratch = scratch;
        let instance = machine.boot("exec sleep 1000").await;
        let mounts = format!("/proc/{}/mountinfo", instance.info().monitor.pid);
        let mounts = std::fs::read_to_string(mounts).unwrap();
        let is_layer = |line: &&str| {
            let at = line.split(' ').nth(4).unwrap_or_default();
            at.ends_with("/d") && line.contains(" - ext4 ")
        };
        let layer = mounts.lines().find(is_layer).unwrap();
        assert_eq!(layer.contains("nobarrier"), scratch, "{layer}");
        instance.kill().await.unwrap();
        wait(&*instance).await;
        machine.assert_clean();
    }
}
