//! Several containers in one machine: real sandboxes that share a network and no files.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use perch_runtime::containers::{
    ContainerSpec, ContainerStart, ContainerState, Dependency, SharedMount, SharedSpec,
};
use perch_runtime::log::{self, Stream};
use perch_runtime::{ExecRequest, ExitReason, GuestExec, GuestStart, Instance};
use perch_types::machine_config::{ContainerCondition, RestartPolicy};

use crate::machine::{LIMIT, Machine, shell, wait};

/// Makes a machine whose containers all have the test's image.
fn several(test: &str, names: &[&str]) -> Option<Machine> {
    let mut machine = Machine::new(test)?;
    machine.spec.containers = names
        .iter()
        .map(|name| ContainerSpec {
            name: (*name).to_owned(),
            lower: machine.spec.lower.clone(),
            shared: Vec::new(),
        })
        .collect();
    Some(machine)
}

fn container(script: &str) -> ContainerStart {
    ContainerStart {
        start: GuestStart { stays: true, ..shell(script) },
        depends_on: Vec::new(),
        restart: RestartPolicy::No,
        retries_max: 10,
        stop_signal: 15,
        stop_grace_ms: 20_000,
    }
}

fn after(
    container: usize,
    condition: ContainerCondition,
    mut one: ContainerStart,
) -> ContainerStart {
    one.depends_on.push(Dependency { container, condition });
    one
}

/// Waits until the containers stand as wanted.
async fn until(instance: &dyn Instance, wanted: &[ContainerState]) {
    let mut counter = 0;
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = tokio::time::timeout(LIMIT, instance.containers(counter)).await;
        let found = found.expect("the containers change").unwrap();
        let states: Vec<ContainerState> = found.each.iter().map(|one| one.state).collect();
        if states == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{states:?} instead of {wanted:?}");
        counter = found.counter;
    }
}

/// Returns what one container wrote.
fn output(machine: &Machine, name: &str) -> String {
    let records = log::read(&machine.spec.dir.log_dir(), 0, log::RECORDS_MAX).unwrap();
    let own = records.iter().filter(|one| one.container.as_deref() == Some(name));
    own.map(|one| String::from_utf8_lossy(&one.line).into_owned() + "\n").collect()
}

async fn exec_in(instance: &dyn Instance, name: &str, script: &str) -> String {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let exec = GuestExec { argv, container: Some(name.to_owned()), ..GuestExec::default() };
    let output = instance.exec(ExecRequest { exec, ..ExecRequest::default() }).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

use ContainerState::{Created, Failed, Started, Stopped};

#[tokio::test]
async fn containers_start_in_their_order_and_share_the_network_but_no_files() {
    let Some(machine) = several("containers", &["web", "db", "setup"]) else {
        return;
    };
    let instance = machine.runtime_create().await;
    let init = instance.info().init.pid.to_string();
    // What the host does with a machine's network.
    crate::machine::run("nsenter", &["-t", &init, "-n", "ip", "link", "set", "lo", "up"]);
    let web = container("touch /of-web; nc -w 5 127.0.0.1 4000; exec sleep 1000");
    let web = after(1, ContainerCondition::Started, web);
    let web = after(2, ContainerCondition::ExitedSuccessfully, web);
    let db = container("touch /of-db; echo from db | nc -l -p 4000; exec sleep 1000");
    let setup = after(
        1,
        ContainerCondition::Started,
        container(
            "until cat /proc/net/tcp /proc/net/tcp6 | grep -q :0FA0; do sleep 0.01; done; echo ready",
        ),
    );
    instance.start_containers(vec![web, db, setup]).await.unwrap();
    machine.wait_for_output("from db").await;
    until(&*instance, &[Started, Started, Stopped]).await;
    assert_eq!(output(&machine, "web"), "from db\n");
    assert_eq!(output(&machine, "setup"), "ready\n");
    assert_eq!(exec_in(&*instance, "web", "ls / | grep of-").await, "of-web\n");
    assert_eq!(exec_in(&*instance, "db", "ls / | grep of-").await, "of-db\n");
    let own = exec_in(&*instance, "db", "cat /proc/1/comm; hostname; ls / | grep -c of-web").await;
    assert_eq!(own, "perch-init\nperchtest\n0\n");
    let exec = GuestExec { container: Some("none".to_owned()), ..GuestExec::default() };
    let refused = instance.exec(ExecRequest { exec, ..ExecRequest::default() }).await.unwrap_err();
    assert!(perch_types::error::chain(&refused).contains("no container `none`"), "{refused:?}");
    instance.stop(15, 20_000).await.unwrap();
    let status = wait(&*instance).await;
    assert!(status.requested_stop);
    assert_eq!(status.reason, ExitReason::Exited);
    machine.assert_clean();
}

#[tokio::test]
async fn a_container_is_caged_as_a_machine_is() {
    let Some(machine) = several("container cage", &["first", "second"]) else {
        return;
    };
    let instance = machine.runtime_create().await;
    let script = "grep -E '^Cap|^NoNewPrivs|^Seccomp:' /proc/self/status | tr -d '\\t' | tr '\\n' ' '; \
         for f in /proc/kcore /proc/keys /proc/timer_list; do if [ -e $f ]; then wc -c < $f; fi; done | sort -u; \
         for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern; do \
           (echo 1 > $f) 2>/dev/null && echo wrote $f; done; \
         mount -t tmpfs none /tmp 2>/dev/null && echo mounted; \
         unshare -U true 2>/dev/null && echo user namespace; \
         mknod /tmp/disk b 7 0 2>/dev/null && echo device; \
         find /dev -type b -o -type c | grep -v /dev/pts/ | sort | tr '\\n' ' '; \
         cat /proc/self/uid_map | tr -s ' '; grep -c 'cgroup.* rw' /proc/mounts; \
         set -- /proc/[0-9]*; echo $#; echo done";
    instance.start_containers(vec![container(script), container(script)]).await.unwrap();
    assert_eq!(wait(&*instance).await.code, 0);
    let (first, second) = (output(&machine, "first"), output(&machine, "second"));
    assert!(first.ends_with("done\n"), "{first}");
    assert_eq!(
        first, second,
        "the second container is as the first, which is a machine's only one"
    );
    for line in ["NoNewPrivs:1 ", "Seccomp:2", " 0 1000000 65536"] {
        assert!(second.contains(line), "{line} in {second}");
    }
    for bad in ["wrote", "mounted", "namespace", "device"] {
        assert!(!second.contains(bad), "{bad} in {second}");
    }
    machine.assert_clean();
}

#[tokio::test]
async fn a_container_is_started_again_and_finds_nothing_that_ran_before() {
    let Some(machine) = several("container restart", &["app", "side"]) else {
        return;
    };
    let instance = machine.runtime_create().await;
    let mut app = container(
        "echo run; if [ -e /again ]; then pidof sleep | wc -w; exec sleep 2000; fi; \
         sleep 1000 & until pidof sleep; do :; done > /dev/null; touch /again; exit 1",
    );
    app.restart = RestartPolicy::OnFailure;
    instance.start_containers(vec![app, container("exec sleep 1000")]).await.unwrap();
    machine.wait_for_output("run\nrun\n0\n").await;
    instance.kill().await.unwrap();
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.reason), (137, ExitReason::Killed));
    machine.assert_clean();
}

#[tokio::test]
async fn a_container_that_is_not_well_is_stopped_and_others_wait_for_health() {
    let Some(machine) = several("container health", &["db", "web"]) else {
        return;
    };
    let instance = machine.runtime_create().await;
    let db = container("trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.01; done");
    let web = after(0, ContainerCondition::Healthy, container("echo web; exec sleep 1000"));
    instance.start_containers(vec![db, web]).await.unwrap();
    until(&*instance, &[Started, Created]).await;
    instance.container_health(0, 1, true).await.unwrap();
    until(&*instance, &[Started, Started]).await;
    instance.stop_unwell(0, 1).await.unwrap();
    until(&*instance, &[Failed, Started]).await;
    assert_eq!(output(&machine, "db"), "up\nasked\n");
    instance.stop(9, 0).await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

#[tokio::test]
async fn containers_share_volumes_that_end_with_the_boot() {
    let Some(mut machine) = several("container volumes", &["writer", "reader"]) else {
        return;
    };
    let disk = machine.folder.path().join("root.v1");
    std::fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    crate::machine::run("mkfs.ext4", &["-q", "-O", "^has_journal", crate::machine::path(&disk)]);
    machine.spec.shared = vec![
        SharedSpec::Memory { size_bytes: 1 << 20 },
        SharedSpec::Disk { image: disk },
        SharedSpec::Image { lower: machine.spec.lower.clone() },
    ];
    for one in &mut machine.spec.containers {
        let mount =
            |(volume, target): (usize, &str)| SharedMount { volume, target: target.to_owned() };
        one.shared = [(0, "/fast"), (1, "/deep/disk"), (2, "/site")].map(mount).to_vec();
    }
    let instance = machine.runtime_create().await;
    let mut writer = container(
        "echo a > /fast/a && echo b > /deep/disk/b && cat /site/bin/data; \
         head -c 3000000 /dev/zero > /fast/big 2>/dev/null || echo full; \
         touch /site/x 2>/dev/null || echo read-only; touch /fast/done; exec sleep 1000",
    );
    writer.start.user = "web".to_owned();
    let reader = container(
        "until [ -e /fast/done ]; do sleep 0.01; done; cat /fast/a /deep/disk/b; ls /fast | wc -l; exec sleep 1000",
    );
    instance.start_containers(vec![writer, reader]).await.unwrap();
    machine.wait_for_output("a\nb\n3\n").await;
    assert_eq!(output(&machine, "writer"), "not a programfull\nread-only\n");
    instance.stop(9, 0).await.unwrap();
    wait(&*instance).await;
    machine.assert_clean();
}

#[tokio::test]
async fn the_end_says_whose_it_was_and_a_program_that_is_not_there_is_named() {
    let Some(machine) = several("container end", &["good", "bad"]) else {
        return;
    };
    let instance = machine.runtime_create().await;
    instance.start_containers(vec![container("exit 0"), container("exit 4")]).await.unwrap();
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.container.as_deref()), (4, Some("bad")));
    let told = machine.output(Stream::System);
    assert!(told.contains("Container bad exited with code: 4"), "{told}");
    machine.assert_clean();

    let mut machine = machine;
    machine.spec.boot = 2;
    let instance = machine.runtime_create().await;
    let none = || ContainerStart {
        start: GuestStart { argv: vec!["none".to_owned()], stays: true, ..GuestStart::default() },
        ..container("")
    };
    let error = instance.start_containers(vec![none(), none()]).await.unwrap_err();
    let perch_runtime::Error::NotExecutable { code: 127, reason } = &error else {
        panic!("{error:?}");
    };
    assert!(reason.contains("there is no program `none`"), "{reason}");
    assert_eq!(wait(&*instance).await.reason, ExitReason::NotExecutable);
    machine.assert_clean();
    // A little patience of the kernel's, so that the image is free for the unmount.
    tokio::time::timeout(Duration::from_secs(5), async {
        while machine.image_in_use() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// Where an image file is mounted, until this is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

/// Mounts an image with links that lead out of it, device nodes and a program that is to run as
/// root, with nothing that a host does about them. `secret` is a file of the host.
fn hostile(test: &str, folder: &Path, secret: &Path) -> Mounted {
    let (tree, lower) = (folder.join("hostile"), folder.join("hostile-lower"));
    for path in [&tree, &lower] {
        std::fs::create_dir(path).unwrap();
    }
    let climbing = PathBuf::from("../".repeat(20)).join(secret.strip_prefix("/").unwrap());
    symlink(secret, tree.join("absolute")).unwrap();
    symlink(climbing, tree.join("climbing")).unwrap();
    symlink("../".repeat(20) + "etc", tree.join("etc")).unwrap();
    for device in [["zero", "c", "1", "5"], ["disk", "b", "7", "0"]] {
        let [name, kind, major, minor] = device;
        let mut mknod = Command::new("mknod");
        let made = mknod.arg(tree.join(name)).args([kind, major, minor]).output().unwrap();
        if !made.status.success() {
            perch_testkit::skipped(test, "the right to make device nodes");
        }
    }
    std::fs::write(tree.join("su"), "#!/bin/sh\nid -u\n").unwrap();
    let set_user_id = std::fs::Permissions::from_mode(0o6755);
    std::fs::set_permissions(tree.join("su"), set_user_id).unwrap();
    let image = folder.join("hostile.erofs");
    let (from, to) = (crate::machine::path(&image), crate::machine::path(&lower));
    crate::machine::run("mkfs.erofs", &["--quiet", from, crate::machine::path(&tree)]);
    crate::machine::run("mount", &["-t", "erofs", "-o", "ro,suid,dev", from, to]);
    Mounted(lower)
}

#[tokio::test]
async fn f7_f9_a_hostile_image_as_a_volume_leads_nowhere_and_has_no_power() {
    let test = "hostile volume";
    let Some(mut machine) = several(test, &["first", "second"]) else {
        return;
    };
    let folder = machine.folder.path().to_owned();
    let secret = folder.join("secret");
    std::fs::write(&secret, "of the host\n").unwrap();
    let lower = hostile(test, &folder, &secret);
    machine.spec.shared = vec![
        SharedSpec::Image { lower: lower.0.clone() },
        SharedSpec::Memory { size_bytes: 1 << 20 },
    ];
    for one in &mut machine.spec.containers {
        let mount =
            |(volume, target): (usize, &str)| SharedMount { volume, target: target.to_owned() };
        // The second one's way leads through a link of the first.
        one.shared = [(0, "/site"), (1, "/site/etc/perch-test-inner")].map(mount).to_vec();
    }
    let script = "for link in absolute climbing; do cat /site/$link 2>/dev/null || echo none; done; \
         head -n 1 /site/etc/passwd; \
         for device in zero disk; do \
           head -c 1 /site/$device >/dev/null 2>&1 && echo opened $device; done; \
         touch /site/new 2>/dev/null && echo wrote; \
         chmod 777 /site/su 2>/dev/null && echo changed; \
         grep -c ' /etc/perch-test-inner ' /proc/mounts; \
         grep ' /site ' /proc/mounts | cut -d ' ' -f 4 | cut -d , -f 1-3";
    let instance = machine.runtime_create().await;
    instance.start_containers(vec![container(script), container(script)]).await.unwrap();
    assert_eq!(wait(&*instance).await.code, 0);
    for name in ["first", "second"] {
        assert_eq!(
            output(&machine, name),
            "none\nnone\nroot:x:0:0:root:/root:/bin/sh\n1\nro,nosuid,nodev\n",
            "{name}"
        );
    }
    assert!(!Path::new("/etc/perch-test-inner").exists());
    machine.assert_clean();
}
