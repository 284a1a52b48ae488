//! The main program: how it is started and how its end is reported.

use perch_runtime::log::Stream;
use perch_runtime::{Error, ExitReason, GuestStart, Runtime as _};

use crate::machine::{Machine, env, shell, wait};

#[tokio::test]
async fn a_boot_runs_the_program_and_leaves_its_output_and_status() {
    let Some(machine) = Machine::new("boot") else {
        return;
    };
    let (status, output) = machine.run("echo hello; echo fault >&2; exit 3").await;
    assert_eq!(output, "hello\n");
    assert_eq!(machine.output(Stream::Stderr), "fault\n");
    assert_eq!((status.code, status.signal, status.reason), (3, None, ExitReason::Exited));
    assert!(!status.oom_killed && !status.requested_stop);
    assert!(status.started_unix_ms > 0 && status.ended_unix_ms >= status.started_unix_ms);
    assert_eq!(
        machine.output(Stream::System),
        "Starting machine\nMain child exited normally with code: 3\nStarting clean up.\n"
    );
    machine.assert_clean();
}

#[tokio::test]
async fn the_program_gets_its_environment_user_folder_and_names() {
    let Some(machine) = Machine::new("environment") else {
        return;
    };
    let start = GuestStart {
        env: env(&[("COLOUR", "blue"), ("EMPTY", "")]),
        user: "web".to_owned(),
        cwd: "/srv/new/folder".to_owned(),
        hostname: Some("named\n".to_owned()),
        hosts: Some("127.0.0.1 localhost\n".to_owned()),
        resolv_conf: Some("nameserver fdaa::3\n".to_owned()),
        ..shell(
            "id -u; id -g; id -G; pwd; stat -c %u .; echo $COLOUR $HOME $PATH; hostname; \
             cat /etc/hosts /etc/resolv.conf /etc/hostname; echo by-name > /dev/stdout; \
             env | sort | tr '\\n' ' '",
        )
    };
    let (status, output) = machine.run_with(start).await;
    assert_eq!(status.code, 0);
    assert_eq!(
        output,
        "33\n33\n33 44\n/srv/new/folder\n33\n\
         blue /home/web /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         perchtest\n127.0.0.1 localhost\nnameserver fdaa::3\nnamed\nby-name\n\
         COLOUR=blue EMPTY= HOME=/home/web \
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
         PWD=/srv/new/folder SHLVL=1 \n"
    );
}

#[tokio::test]
async fn a_signal_that_ends_the_program_is_reported() {
    let Some(machine) = Machine::new("signal") else {
        return;
    };
    let instance = machine.boot("echo up; exec sleep 1000").await;
    machine.wait_for_output("up").await;
    instance.signal(10).await.unwrap();
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.signal), (138, Some(10)));
    assert!(!status.requested_stop);
    machine.assert_clean();
}

#[tokio::test]
async fn a_stop_asks_first_and_kills_after_the_grace() {
    let Some(machine) = Machine::new("stop") else {
        return;
    };
    let instance =
        machine.boot("trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.01; done").await;
    machine.wait_for_output("up").await;
    instance.stop(15, 20_000).await.unwrap();
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.requested_stop), (7, true));

    let mut machine = machine;
    machine.spec.boot = 2;
    let instance = machine.boot("trap '' TERM; echo deaf; while :; do sleep 0.01; done").await;
    machine.wait_for_output("deaf").await;
    instance.stop(15, 50).await.unwrap();
    let status = wait(&*instance).await;
    assert_eq!((status.code, status.signal, status.reason), (137, Some(9), ExitReason::Killed));
    assert!(status.requested_stop);
    machine.assert_clean();
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_told_from_one_that_fails() {
    let Some(mut machine) = Machine::new("execute") else {
        return;
    };
    let cases = [
        (vec!["nothing"], "", 127, "`nothing`"),
        (vec!["/bin/data"], "", 126, "/bin/data"),
        (vec!["/no/such"], "", 127, "/no/such"),
        (vec![], "", 127, "no program"),
        (vec!["sh"], "stranger", 126, "`stranger`"),
        (vec!["sh"], "4294967296", 126, "4294967296"),
    ];
    for (argv, user, code, words) in cases {
        let instance = machine.runtime.create(&machine.spec).await.unwrap();
        let start = GuestStart {
            argv: argv.into_iter().map(str::to_owned).collect(),
            user: user.to_owned(),
            ..GuestStart::default()
        };
        match instance.start(start).await {
            Err(Error::NotExecutable { code: found, reason }) => {
                assert_eq!(found, code, "{reason}");
                assert!(reason.contains(words), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        let status = wait(&*instance).await;
        assert_eq!((status.code, status.reason), (code, ExitReason::NotExecutable));
        assert!(status.message.contains(words), "{}", status.message);
        machine.spec.boot += 1;
    }
    machine.assert_clean();
}

#[tokio::test]
async fn orphans_are_collected_and_the_rest_ends_with_the_program() {
    let Some(machine) = Machine::new("orphans") else {
        return;
    };
    let script = "for i in 1 2 3; do (sleep 0.01 &) ; done; sleep 0.2; \
         grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; (sleep 1000 &); exit 0";
    let (status, output) = machine.run(script).await;
    assert_eq!((status.code, output.trim()), (0, "0"));
    machine.assert_clean();
}

#[tokio::test]
async fn what_was_written_is_there_in_the_next_boot() {
    let Some(mut machine) = Machine::new("second boot") else {
        return;
    };
    machine.run("echo kept > /root-file; rm /bin/data").await;
    machine.spec.boot = 2;
    machine.spec.ids.first = 3_000_000;
    let (status, output) = machine.run("cat /root-file; stat -c %u /root-file; ls /bin/data").await;
    assert_eq!(output.lines().collect::<Vec<_>>(), ["kept", "0",]);
    assert_eq!(status.code, 1);
    machine.assert_clean();
}

#[tokio::test]
async fn a_main_program_may_have_a_terminal() {
    let Some(machine) = Machine::new("terminal") else {
        return;
    };
    let start = GuestStart { tty: true, ..shell("tty; stty size") };
    let (_, output) = machine.run_with(start).await;
    assert_eq!(output.replace('\r', ""), "/dev/pts/0\n24 80\n");
}

#[tokio::test]
async fn f7_a_volume_appears_where_the_machine_sees_the_path() {
    let Some(mut machine) = Machine::new("volume") else {
        return;
    };
    let image = machine.folder.path().join("volume.ext4");
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let source = machine.folder.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    crate::machine::run("mkfs.ext4", &["-q", "-O", "^has_journal", crate::machine::path(&image)]);
    crate::machine::run(
        "mount",
        &["-o", "loop", crate::machine::path(&image), crate::machine::path(&source)],
    );
    // The machine redirects the target to a path of the host in one boot, and gets its own in
    // the next.
    machine.run("ln -s /etc /data").await;
    machine.spec.boot = 2;
    machine.spec.mounts = vec![perch_runtime::Mount {
        source: source.clone(),
        target: "/data/sub".to_owned(),
        read_only: false,
    }];
    let (status, output) = machine
        .run("echo v > /etc/sub/file; stat -c %u /etc/sub/file; grep ' /etc/sub ' /proc/mounts")
        .await;
    let kept = std::fs::read_to_string(source.join("file"));
    crate::machine::run("umount", &[crate::machine::path(&source)]);
    assert_eq!(status.code, 0);
    assert!(output.starts_with("0\n"), "{output}");
    assert!(output.contains("nosuid,nodev"), "{output}");
    assert_eq!(kept.unwrap(), "v\n");
    assert!(!std::path::Path::new("/etc/sub").exists());
}
