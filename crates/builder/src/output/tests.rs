use super::*;

const FILE: &str = "FROM a\nCOPY . /app\n\nRUN pip install \\\n  -r requirements.txt\n";

fn exit(code: i32) -> Exit {
    Exit { code: Some(code), out_of_memory: false, timed_out: false }
}

fn read<'a>(dockerfile: &'a Dockerfile, lines: &[&str]) -> (Output<'a>, Vec<String>) {
    let mut output = Output::new(dockerfile, "Dockerfile");
    let heard = lines
        .iter()
        .filter_map(|line| output.line(line))
        .map(|event| match event {
            BuildEvent::Log { line } => line,
            BuildEvent::Progress { text } => format!("> {text}"),
            other => panic!("{other:?}"),
        })
        .collect();
    (output, heard)
}

#[test]
fn a_failed_step_is_named_with_its_line_code_and_last_output() {
    let dockerfile = Dockerfile::parse(FILE);
    let inserted = format!("STEP 2/4: {VARIABLES} PIP_CERT=/x");
    let (output, heard) = read(
        &dockerfile,
        &[
            "STEP 1/4: FROM a",
            &inserted,
            "--> addbf6e68ad",
            "STEP 3/4: COPY . /app",
            "--> 0123",
            "STEP 4/4: RUN pip install   -r requirements.txt",
            "ERROR: no such package",
            "subprocess exited with status 1",
            "Error: building at STEP \"RUN pip install -r requirements.txt\": exit status 1",
        ],
    );
    assert_eq!(
        heard,
        [
            "> step 1/3: FROM a",
            "> step 2/3: COPY . /app",
            "--> 0123",
            "> step 3/3: RUN pip install   -r requirements.txt",
            "ERROR: no such package",
            "Error: building at STEP \"RUN pip install -r requirements.txt\": exit status 1",
        ]
    );
    let error = output.failure(&exit(1), &Limits::default());
    assert_eq!(error.code, Code::BuildFailed);
    assert_eq!(
        error.error,
        "`RUN pip install -r requirements.txt` (Dockerfile line 4) exited with code 1\nlast lines:\n  ERROR: no such package"
    );
}

#[test]
fn time_and_memory_are_told_apart_from_a_failing_program() {
    let dockerfile = Dockerfile::parse(FILE);
    let (output, _) = read(&dockerfile, &["STEP 4/4: RUN x"]);
    let limits = Limits { memory_bytes: 64 << 20, time_s_max: 9, ..Limits::default() };
    let timed_out = Exit { code: None, out_of_memory: false, timed_out: true };
    assert!(output.failure(&timed_out, &limits).error.contains("took longer than 9 s"));
    let starved = Exit { code: Some(137), out_of_memory: true, timed_out: false };
    assert!(output.failure(&starved, &limits).error.contains("may use 64 MiB"));
}

#[test]
fn an_image_that_nobody_has_is_not_a_failed_build() {
    let dockerfile = Dockerfile::parse(FILE);
    for (reason, code) in [
        (
            "Error: creating build container: initializing source docker://registry.internal/x:1: reading manifest 1 in 127.0.0.1:5000/x: manifest unknown",
            Code::ImageUnknown,
        ),
        (
            "Error: creating build container: initializing source docker://python:9: (Mirrors also failed: [127.0.0.1:5000/base/library/python:9: reading manifest 9 in 127.0.0.1:5000/base/library/python: manifest unknown]): docker.io/library/python:9: pinging container registry registry-1.docker.io: Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
            Code::ImageUnavailable,
        ),
        ("Error: committing container: no space left on device", Code::NoSpace),
        ("Error: something else", Code::BuildFailed),
    ] {
        let (output, _) = read(&dockerfile, &["STEP 1/4: FROM a", reason]);
        assert_eq!(output.failure(&exit(125), &Limits::default()).code, code, "{reason}");
    }
}

#[test]
fn steps_of_several_stages_are_counted_by_stage() {
    assert_eq!(
        Step::parse("[2/3] STEP 4/5: RUN a: b"),
        Some(Step { stage: 2, stages: 3, number: 4, of: 5, text: "RUN a: b" })
    );
    for line in ["STEP", "STEP x/2: y", "[1/2] COPY", "STEP 0/1: y", ""] {
        assert_eq!(Step::parse(line), None, "{line}");
    }
}

proptest::proptest! {
    #[test]
    fn no_line_breaks_the_reader(line in "(\\[|STEP |1|/|: |é|Error: |exit status |x){0,12}") {
        let dockerfile = Dockerfile::parse(FILE);
        let mut output = Output::new(&dockerfile, "Dockerfile");
        output.line(&line);
        proptest::prop_assert!(output.failure(&exit(1), &Limits::default()).error.len() <= ERROR_TEXT_BYTES_MAX);
    }
}
