//! The text format of Prometheus.
//!
//! Never a series that says nothing: what never happened is left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use perch_types::consumed::MachineConsumed;
use perch_types::directory::VolumeRecord;
use perch_types::{MachineId, MachineState};

use super::{AppMetrics, Histogram, Responses};
use crate::Shared;
use crate::live::{AppKey, Serving, Target};

/// Where and whose a series is.
#[derive(Clone, Copy)]
struct Labels<'a> {
    shared: &'a Shared,
    /// Nobody's when there is none.
    app: Option<&'a AppKey>,
    instance: Option<&'a str>,
}

impl Labels<'_> {
    fn write(&self, text: &mut String, more: &[(&str, &str)]) {
        let (org, app) = self.app.map_or(("", ""), |app| (app.org.as_str(), app.name.as_str()));
        let (region, host) = (self.shared.region.as_str(), self.shared.host_id.as_str());
        let of_instance = self.instance.map(|instance| ("instance", instance));
        let all = [
            Some(("app", app)),
            Some(("org", org)),
            Some(("region", region)),
            Some(("host", host)),
            of_instance,
            Some(("proxy_id", host)),
        ];
        let mut before = '{';
        for (name, value) in all.into_iter().flatten().chain(more.iter().copied()) {
            text.push(before);
            text.push_str(name);
            text.push_str("=\"");
            value.chars().for_each(|c| match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            });
            text.push('"');
            before = ',';
        }
        text.push('}');
    }
}

/// One name and all its series.
struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl<'a> Family<'a> {
    fn new(text: &'a mut String, name: &'a str, kind: &str, help: &str) -> Self {
        line(text, format_args!("# HELP {name} {help}"));
        line(text, format_args!("# TYPE {name} {kind}"));
        Self { text, name }
    }

    fn sample(&mut self, labels: Labels<'_>, value: u64) {
        self.text.push_str(self.name);
        labels.write(self.text, &[]);
        line(self.text, format_args!(" {value}"));
    }

    fn sample_of(&mut self, labels: Labels<'_>, more: &[(&str, &str)], value: u64) {
        self.text.push_str(self.name);
        labels.write(self.text, more);
        line(self.text, format_args!(" {value}"));
    }

    fn responses(&mut self, labels: Labels<'_>, responses: &Responses) {
        for (status, count) in responses.each() {
            self.sample_of(labels, &[("status", &*status)], count);
        }
    }

    fn times(&mut self, labels: Labels<'_>, times: &Histogram) {
        let (up_to, all) = times.up_to();
        if all == 0 {
            return;
        }
        let bounds = up_to.iter().map(|(bound, count)| (seconds(*bound), *count));
        for (bound, count) in bounds.chain([("+Inf".to_owned(), all)]) {
            self.text.push_str(self.name);
            self.text.push_str("_bucket");
            labels.write(self.text, &[("le", bound.as_str())]);
            line(self.text, format_args!(" {count}"));
        }
        for (what, value) in [("_sum", seconds(times.sum())), ("_count", all.to_string())] {
            self.text.push_str(self.name);
            self.text.push_str(what);
            labels.write(self.text, &[]);
            line(self.text, format_args!(" {value}"));
        }
    }
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A text takes whatever is written to it.
    let _written = writeln!(text, "{what}");
}

fn seconds(took: Duration) -> String {
    format!("{}", took.as_secs_f64())
}

/// Writes everything that an edge counts.
pub(super) fn write(shared: &Shared, consumed: &[MachineConsumed]) -> String {
    let mut text = String::new();
    let apps = shared.live.apps();
    edge(&mut text, shared);
    of_apps(&mut text, shared, &apps);
    of_instances(&mut text, shared, &apps);
    of_consumed(&mut text, shared, &apps, consumed);
    of_volumes(&mut text, shared);
    text
}

fn edge(text: &mut String, shared: &Shared) {
    let metrics = &shared.metrics;
    let labels = Labels { shared, app: None, instance: None };
    for (name, help, value) in [
        ("fly_edge_tcp_connects_count", "Connections of clients.", metrics.connects.get()),
        ("fly_edge_tcp_disconnects_count", "Ends of them.", metrics.disconnects.get()),
        (
            "fly_edge_tls_handshake_errors",
            "TLS handshakes that failed.",
            metrics.handshake_errors.get(),
        ),
        (
            "perch_edge_spliced_bytes",
            "Bytes to clients that the kernel moved, without a copy.",
            metrics.spliced.get(),
        ),
    ] {
        Family::new(text, name, "counter", help).sample(labels, value);
    }
    let name = "fly_edge_tls_handshake_time_seconds";
    let help = "How long TLS handshakes took.";
    Family::new(text, name, "histogram", help).times(labels, &metrics.handshakes);
    let help = "Requests that wait for a machine.";
    Family::new(text, "perch_edge_held_requests", "gauge", help)
        .sample(labels, shared.wakes.held());
}

type Apps = [(Arc<AppKey>, Serving)];

fn of_apps(text: &mut String, shared: &Shared, apps: &Apps) {
    let nobodys = (Labels { shared, app: None, instance: None }, &shared.metrics.nobodys);
    let each = || -> Vec<(Labels<'_>, &Arc<AppMetrics>)> {
        let known = apps.iter().map(|(app, serving)| {
            (Labels { shared, app: Some(&**app), instance: None }, &serving.metrics)
        });
        std::iter::once(nobodys).chain(known).collect()
    };
    let (name, help) = ("fly_edge_http_responses_count", "Answers to clients.");
    let mut family = Family::new(text, name, "counter", help);
    each().iter().for_each(|(labels, app)| family.responses(*labels, &app.responses));
    let (name, help) = ("fly_edge_http_response_time_seconds", "How long they took to begin.");
    let mut family = Family::new(text, name, "histogram", help);
    each().iter().for_each(|(labels, app)| family.times(*labels, &app.times));
    let mut family = Family::new(text, "fly_edge_data_in", "counter", "Bytes from clients.");
    each().iter().for_each(|(labels, app)| family.sample(*labels, app.bytes_in.get()));
    let mut family = Family::new(text, "fly_edge_data_out", "counter", "Bytes to clients.");
    each().iter().for_each(|(labels, app)| family.sample(*labels, app.bytes_out.get()));
    let (name, help) = ("perch_app_connections", "Connections of clients to an app over HTTP.");
    let mut family = Family::new(text, name, "gauge", help);
    each().iter().for_each(|(labels, app)| family.sample(*labels, app.connections.get()));
    let (name, help) = ("perch_app_wake_seconds", "How long requests waited for a start.");
    let mut family = Family::new(text, name, "histogram", help);
    each().iter().for_each(|(labels, app)| family.times(*labels, &app.wakes));
    let (name, help) = ("perch_app_held_requests", "Requests of an app that wait for a machine.");
    let mut family = Family::new(text, name, "gauge", help);
    each().iter().for_each(|(labels, app)| family.sample(*labels, app.held.get()));
}

fn of_instances(text: &mut String, shared: &Shared, apps: &Apps) {
    let each = || -> Vec<(Labels<'_>, &Target)> {
        let all = apps.iter().flat_map(|(app, serving)| {
            serving.machines.iter().map(move |target| {
                let instance = Some(target.record.id.as_str());
                (Labels { shared, app: Some(&**app), instance }, target.as_ref())
            })
        });
        all.collect()
    };
    let mut family = Family::new(text, "fly_instance_up", "gauge", "Whether a machine runs.");
    let up = |target: &Target| u64::from(target.record.state == MachineState::Started);
    each().iter().for_each(|(labels, it)| family.sample(*labels, up(it)));
    let name = "fly_instance_memory_mem_total";
    let mut family = Family::new(text, name, "gauge", "Bytes that a machine may use.");
    let memory = |target: &Target| u64::from(target.record.memory_mb) << 20;
    each().iter().for_each(|(labels, it)| family.sample(*labels, memory(it)));
    let mut family = Family::new(text, "fly_app_concurrency", "gauge", "What is under way.");
    each().iter().for_each(|(labels, it)| family.sample(*labels, it.load.in_flight().into()));
    let (name, help) = ("fly_app_http_responses_count", "Answers of machines.");
    let mut family = Family::new(text, name, "counter", help);
    each().iter().for_each(|(labels, it)| family.responses(*labels, &it.load.instance.responses));
    let (name, help) = ("fly_app_http_response_time_seconds", "How long they took to begin.");
    let mut family = Family::new(text, name, "histogram", help);
    each().iter().for_each(|(labels, it)| family.times(*labels, &it.load.instance.times));
    let (name, help) = ("fly_app_connect_time_seconds", "How long machines took to accept.");
    let mut family = Family::new(text, name, "histogram", help);
    each().iter().for_each(|(labels, it)| family.times(*labels, &it.load.instance.connects));
    let (name, help) = ("fly_app_tcp_connects_count", "Connections to machines.");
    let mut family = Family::new(text, name, "counter", help);
    each()
        .iter()
        .for_each(|(labels, it)| family.sample(*labels, it.load.instance.connects.count()));
    let (name, help) = ("fly_app_tcp_disconnects_count", "Ends of them.");
    let mut family = Family::new(text, name, "counter", help);
    each()
        .iter()
        .for_each(|(labels, it)| family.sample(*labels, it.load.instance.disconnects.get()));
}

/// Writes what machines have used.
fn of_consumed(text: &mut String, shared: &Shared, apps: &Apps, all: &[MachineConsumed]) {
    /// Microseconds of what is counted in hundredths of a second.
    const HUNDREDTH_US: u64 = 10_000;
    let said: BTreeMap<&MachineId, &MachineConsumed> = all.iter().map(|it| (&it.id, it)).collect();
    let said = &said;
    let machines = apps.iter().flat_map(move |(app, serving)| {
        let here = serving.machines.iter();
        here.filter_map(move |target| Some((app, target, *said.get(&target.record.id)?)))
    });
    let machines: Vec<_> = machines.collect();
    let mut each = |(name, kind, help): (&str, &str, &str),
                    more: &[(&str, &str)],
                    value: &dyn Fn(&MachineConsumed, &Target) -> u64| {
        let mut family = match kind {
            "" => Family { text: &mut *text, name },
            _ => Family::new(text, name, kind, help),
        };
        for &(app, target, consumed) in &machines {
            let instance = Some(target.record.id.as_str());
            let labels = Labels { shared, app: Some(&**app), instance };
            family.sample_of(labels, more, value(consumed, target));
        }
    };
    let cpu = "fly_instance_cpu";
    let help = "Time on all CPUs, in hundredths of a second.";
    each((cpu, "counter", help), &[("cpu_id", "all"), ("mode", "user")], &|it, _| {
        it.cpu_user_us / HUNDREDTH_US
    });
    // The same family goes on.
    each((cpu, "", ""), &[("cpu_id", "all"), ("mode", "system")], &|it, _| {
        it.cpu_system_us / HUNDREDTH_US
    });
    let help = "Time over the ceiling of CPUs, in hundredths of a second.";
    each(("fly_instance_cpu_throttle", "counter", help), &[], &|it, _| {
        it.throttled_us / HUNDREDTH_US
    });
    let help = "Bytes of memory that a machine does not use.";
    each(("fly_instance_memory_mem_free", "gauge", help), &[], &|it, target| {
        (u64::from(target.record.memory_mb) << 20).saturating_sub(it.memory_bytes)
    });
    let device = &[("device", "eth0")];
    let mut traffic = |name: &str, help: &str, value: &dyn Fn(&MachineConsumed) -> u64| {
        each((name, "counter", help), device, &|it, _| value(it));
    };
    traffic("fly_instance_net_recv_bytes", "Bytes to machines.", &|it| it.received_bytes);
    traffic("fly_instance_net_recv_packets", "Packets to machines.", &|it| it.received_packets);
    traffic("fly_instance_net_sent_bytes", "Bytes from machines.", &|it| it.sent_bytes);
    traffic("fly_instance_net_sent_packets", "Packets from machines.", &|it| it.sent_packets);
}

/// Writes what the host of this server has last said of its volumes.
fn of_volumes(text: &mut String, shared: &Shared) {
    let view = shared.view.load();
    let here = view.volumes().filter(|volume| volume.host == shared.host_id);
    let here: Vec<(AppKey, &VolumeRecord)> = here
        .map(|volume| (AppKey { org: volume.org.clone(), name: volume.app.clone() }, volume))
        .collect();
    let mut each = |name: &str, help: &str, value: &dyn Fn(&VolumeRecord) -> u64| {
        let mut family = Family::new(text, name, "gauge", help);
        for (app, volume) in &here {
            let instance = volume.attached.as_ref().map(MachineId::as_str);
            let labels = Labels { shared, app: Some(app), instance };
            family.sample_of(labels, &[("id", volume.id.as_str())], value(volume));
        }
    };
    each("fly_volume_size_bytes", "Sizes of volumes.", &|volume| u64::from(volume.size_gb) << 30);
    let help = "How full volumes were when their host last looked, in percent.";
    each("fly_volume_used_pct", help, &|volume| volume.usage.used_percent());
}
