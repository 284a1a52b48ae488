use super::*;

/// Returns a machine that was just made.
pub(crate) fn record() -> Record {
    let config: MachineConfig =
        serde_json::from_value(serde_json::json!({"image": "web:1"})).unwrap();
    let instance = InstanceId::from_parts(1_700_000_000_000, 7);
    Record {
        id: MachineId::from_bits(0xabc),
        org: OrgSlug::personal(),
        app: "web".parse().unwrap(),
        name: "web-1".to_owned(),
        network_id: 1,
        slot: 0,
        state: State::Created,
        desired: Desired::Running,
        cordoned: false,
        version: Version {
            upper: upper_name(&instance),
            instance,
            epoch: 1,
            config,
            config_digest: "aa".to_owned(),
            image: ImageRef::default(),
            others: Vec::new(),
            secrets: SecretsWanted::default(),
        },
        next: None,
        boots: 0,
        boot: None,
        history: History::default(),
        restart_boot_ms: None,
        schedule_ms: None,
        stood_in: Vec::new(),
        secrets_version: None,
        failure: None,
        given_up: None,
        events: Vec::new(),
        created_at: Timestamp::from_unix_ms(1_700_000_000_000),
        updated_at: Timestamp::from_unix_ms(1_700_000_000_000),
    }
}

pub(crate) fn at(ms: i64) -> Instant {
    Instant { now: Timestamp::from_unix_ms(1_700_000_000_000 + ms), random: 5 }
}

fn exit(code: i32, signal: Option<i32>) -> ExitStatus {
    ExitStatus {
        instance: record().version.instance,
        boot: 1,
        code,
        signal,
        oom_killed: false,
        forks_refused: false,
        requested_stop: false,
        reason: ExitReason::Exited,
        message: String::new(),
        process: None,
        container: None,
        started_unix_ms: 0,
        ended_unix_ms: 1_700_000_000_500,
    }
}

#[test]
fn an_exit_event_has_the_contracts_shape() {
    let mut record = record();
    record.boot = Some(Boot::new(1));
    record.state = State::Starting;
    record.history.count = 2;
    record.note_exit(&exit(137, Some(9)), Exiting { asked: false, restarting: true }, at(600));
    let text = serde_json::to_string_pretty(&record.events[0]).unwrap();
    insta::assert_snapshot!(text, @r#"
    {
      "id": "01HF7YATJR0000000000000005",
      "type": "exit",
      "status": "starting",
      "source": "flyd",
      "timestamp": 1700000000600,
      "request": {
        "exit_event": {
          "exit_code": 137,
          "exited_at": "2023-11-14T22:13:20.500Z",
          "guest_exit_code": -1,
          "guest_signal": 9,
          "oom_killed": false,
          "requested_stop": false,
          "restarting": true,
          "signal": 0
        },
        "restart_count": 2
      }
    }
    "#);
}

#[test]
fn a_program_that_cannot_be_executed_says_why() {
    let mut record = record();
    let exit = ExitStatus {
        reason: ExitReason::NotExecutable,
        message: "no such program: serve".to_owned(),
        ..exit(127, None)
    };
    record.note_exit(&exit, Exiting { asked: false, restarting: false }, at(1));
    let request = record.events[0].request.clone().unwrap();
    let request: ExitRequest = serde_json::from_value(request).unwrap();
    assert_eq!(request.exit_event.error.as_deref(), Some("no such program: serve"));
    assert_eq!(request.exit_event.guest_exit_code, 127);
}

#[test]
fn an_exit_for_want_of_processes_is_told_before_it_and_once() {
    let exit = ExitStatus { forks_refused: true, ..exit(2, None) };
    for was_seen_before in [false, true] {
        let mut record = record();
        record.boot = Some(Boot::new(1));
        if was_seen_before {
            record.note_reached(Reached::Processes, at(1)).unwrap();
        }
        record.note_exit(&exit, Exiting { asked: false, restarting: false }, at(2));
        let kinds: Vec<&str> = record.events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["exit", "limit"]);
        assert_eq!(record.events[1].request.clone().unwrap()["limit"], "processes");
    }
}

#[test]
fn events_are_newest_first_and_few() {
    let mut record = record();
    for ms in 0..100 {
        record.note("start", Source::User, at(ms));
    }
    assert_eq!(record.events.len(), EVENTS_MAX);
    assert!(record.events.windows(2).all(|pair| pair[0].timestamp > pair[1].timestamp));
    assert!(record.events.windows(2).all(|pair| pair[0].id > pair[1].id));
}

#[test]
fn a_layer_is_kept_as_long_as_the_configuration_says() {
    for (persist, after_exit, after_stop) in
        [("never", true, true), ("restart", false, true), ("always", false, false)]
    {
        let mut record = record();
        record.version.config =
            serde_json::from_value(serde_json::json!({"rootfs": {"persist": persist}})).unwrap();
        assert_eq!(record.begins_fresh(true), after_exit, "{persist}");
        assert_eq!(record.begins_fresh(false), after_stop, "{persist}");
        let next = InstanceId::from_parts(1_700_000_000_001, 8);
        let config = record.version.config.clone();
        let keeps = |config: &MachineConfig, others: &[ImageRef]| {
            let upper = record.upper_for(config, (&ImageRef::default(), others), &next);
            upper == record.version.upper
        };
        assert_eq!(keeps(&config, &[]), persist == "always");
        // What one container wrote must not become another's.
        let other = ImageRef {
            digest: Some(perch_types::image::Digest::from_sha256(&[1; 32])),
            ..ImageRef::default()
        };
        assert!(!keeps(&config, &[other]), "{persist}");
        let mut named = config;
        named.containers.push(perch_types::machine_config::ContainerConfig {
            name: "web".to_owned(),
            ..Default::default()
        });
        assert!(!keeps(&named, &[]), "{persist}");
    }
}

fn place() -> Place {
    Place {
        host: perch_types::HostId::from_bits(1),
        region: "ams".parse().unwrap(),
        private_ip: std::net::Ipv6Addr::LOCALHOST,
        private_ipv4: std::net::Ipv4Addr::LOCALHOST,
    }
}

#[test]
fn the_directory_hears_how_the_containers_stand() {
    let mut record = record();
    record.version.config =
        serde_json::from_value(serde_json::json!({"containers": [{"name": "web"}]})).unwrap();
    let containers = vec![perch_types::api::ContainerSummary {
        name: "web".to_owned(),
        state: "restarting".to_owned(),
    }];
    let readiness = Readiness { containers: containers.clone(), ..Readiness::default() };
    let generation = perch_types::directory::Generation::default();
    let machine = host_machine(&record, &readiness, generation, &place());
    assert_eq!(machine.record(place().host).containers, containers);
}

#[test]
fn a_record_for_the_directory_fits_whatever_its_owner_wrote() {
    let mut record = record();
    let long = "x".repeat(2_000);
    record.version.config = serde_json::from_value(serde_json::json!({
        "image": "web:1",
        "metadata": {"a": long, "b": long, "fly_process_group": "web"},
        "containers": [{"name": "web"}],
        "services": [{"internal_port": 80, "ports": [{"port": 443}],
            "checks": [{"type": "http", "path": "/up"}]}],
    }))
    .unwrap();
    let place = place();
    let generation = perch_types::directory::Generation::default();
    let machine = host_machine(&record, &Readiness::default(), generation, &place);
    let published = machine.record(place.host);
    assert!(serde_json::to_vec(&published).unwrap().len() <= 4096);
    assert!(published.containers.is_empty(), "they go first");
    assert_eq!(published.metadata.keys().collect::<Vec<_>>(), ["fly_process_group"]);
    assert_eq!(published.services, record.version.config.services);
}
