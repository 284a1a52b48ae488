//! What one edge tells another beside the request, and beside the answer: the field `perch-hop`.
//!
//! Never read from anybody but an edge. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderValue;
use perch_types::{AppName, HostId, MachineId, OrgSlug};

use crate::cause::Cause;
use crate::live::AppKey;
use crate::raw::Ends;

/// What is asked for beside a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// Who asks.
    pub(crate) from: HostId,
    pub(crate) app: AppKey,
    /// The public port that the client came to.
    pub(crate) public_port: u16,
    /// How long the request may wait for a machine; not at all when it could go elsewhere.
    pub(crate) wait: Duration,
    /// The one machine; any of the app's on that host when there is none.
    pub(crate) machine: Option<MachineId>,
    /// Between whom, when it is no request: a connection at a raw port is to be carried.
    pub(crate) ends: Option<Ends>,
}

impl Order {
    /// Writes it; nothing when it cannot be said.
    pub(crate) fn value(&self) -> Option<HeaderValue> {
        let Self { from, app, public_port, wait, machine, ends } = self;
        let (org, name, wait) = (&app.org, &app.name, wait.as_millis());
        let mut text = format!("from={from};org={org};app={name};port={public_port};wait={wait}");
        if let Some(machine) = machine {
            text.push_str(";machine=");
            text.push_str(machine.as_str());
        }
        let ends = ends.map(|Ends { client, public }| format!(";client={client};at={public}"));
        text.push_str(ends.as_deref().unwrap_or_default());
        HeaderValue::try_from(text).ok()
    }

    /// Reads it; nothing when anything of it is unclear.
    pub(crate) fn of(value: &HeaderValue) -> Option<Self> {
        let (mut from, mut org, mut app) = (None::<HostId>, None::<OrgSlug>, None::<AppName>);
        let (mut port, mut wait, mut machine) = (None::<u16>, None::<u64>, None::<MachineId>);
        let (mut client, mut public) = (None::<SocketAddr>, None::<SocketAddr>);
        for part in value.to_str().ok()?.split(';') {
            let (name, text) = part.split_once('=')?;
            let is_first = match name {
                "from" => from.replace(text.parse().ok()?).is_none(),
                "org" => org.replace(text.parse().ok()?).is_none(),
                "app" => app.replace(text.parse().ok()?).is_none(),
                "port" => port.replace(text.parse().ok()?).is_none(),
                "wait" => wait.replace(text.parse().ok()?).is_none(),
                "machine" => machine.replace(text.parse().ok()?).is_none(),
                "client" => client.replace(text.parse().ok()?).is_none(),
                "at" => public.replace(text.parse().ok()?).is_none(),
                _ => false,
            };
            if !is_first {
                return None;
            }
        }
        let ends = match (client, public) {
            (Some(client), Some(public)) => Some(Ends { client, public }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return None,
        };
        Some(Self {
            from: from?,
            app: AppKey { org: org?, name: app? },
            public_port: port?,
            wait: Duration::from_millis(wait?),
            machine,
            ends,
        })
    }
}

/// What is said beside an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is a machine's.
    From(MachineId),
    /// It is a file of the image.
    Static,
    /// There is none, and no machine has seen anything of the request.
    Unsent(Cause),
    /// There is none, and a machine may have seen the request.
    Failed(Cause),
}

impl Verdict {
    pub(crate) fn value(&self) -> HeaderValue {
        let text = match self {
            Self::From(machine) => format!("machine={machine}"),
            Self::Static => "static".to_owned(),
            Self::Unsent(cause) => format!("unsent={}", cause.code()),
            Self::Failed(cause) => format!("failed={}", cause.code()),
        };
        // Ids and codes are letters and digits.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }

    pub(crate) fn of(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        if text == "static" {
            return Some(Self::Static);
        }
        let (name, text) = text.split_once('=')?;
        let cause = || Cause::ALL.into_iter().find(|cause| cause.code() == text);
        match name {
            "machine" => Some(Self::From(text.parse().ok()?)),
            "unsent" => Some(Self::Unsent(cause()?)),
            "failed" => Some(Self::Failed(cause()?)),
            _ => None,
        }
    }
}

/// What is understood is said again as the same: for the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    if let Some(order) = Order::of(&value) {
        let again = order.value().and_then(|value| Order::of(&value));
        assert_eq!(again.as_ref(), Some(&order));
    }
    if let Some(verdict) = Verdict::of(&value) {
        assert_eq!(Verdict::of(&verdict.value()).as_ref(), Some(&verdict));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(machine: Option<MachineId>) -> Order {
        Order {
            from: HostId::from_bits(1),
            app: AppKey { org: "personal".parse().unwrap(), name: "web".parse().unwrap() },
            public_port: 443,
            wait: Duration::from_millis(1_500),
            machine,
            ends: None,
        }
    }

    fn carrying(client: &str, public: &str) -> Order {
        let ends = Ends { client: client.parse().unwrap(), public: public.parse().unwrap() };
        Order { ends: Some(ends), ..order(None) }
    }

    #[test]
    fn an_order_is_read_as_it_was_written_and_nothing_unclear_is() {
        for order in [
            order(None),
            order(Some(MachineId::from_bits(7))),
            carrying("192.0.2.1:1025", "198.51.100.7:5432"),
            carrying("[2001:db8::1]:1025", "[::ffff:198.51.100.7]:5432"),
            Order {
                machine: Some(MachineId::from_bits(7)),
                ..carrying("[fe80::1%3]:1", "[fe80::2%3]:2")
            },
        ] {
            assert_eq!(Order::of(&order.value().unwrap()), Some(order));
        }
        let fine = "from=000000000001;org=personal;app=web;port=443;wait=1500";
        assert_eq!(Order::of(&HeaderValue::from_static(fine)), Some(order(None)));
        for bad in [
            "",
            "from=000000000001",
            "from=000000000001;org=personal;app=web;port=443",
            "from=1;org=personal;app=web;port=443;wait=0",
            "from=000000000001;org=personal;app=web;port=70000;wait=0",
            "from=000000000001;org=personal;app=web;port=443;wait=-1",
            "from=000000000001;org=personal;app=web;port=443;wait=0;wait=1",
            "from=000000000001;org=personal;app=web;port=443;wait=0;machine=x",
            "from=000000000001;org=personal;app=web;port=443;wait=0;hops=2",
            "from=000000000001;org=personal;app=a b;port=443;wait=0",
            "from=000000000001;org=personal;app=web;port=443;wait=0;client=192.0.2.1:1",
            "from=000000000001;org=personal;app=web;port=443;wait=0;at=192.0.2.1:1",
            "from=000000000001;org=personal;app=web;port=443;wait=0;client=192.0.2.1;at=192.0.2.1:1",
        ] {
            assert_eq!(Order::of(&HeaderValue::from_static(bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_verdict_is_read_as_it_was_written() {
        let others = [Verdict::From(MachineId::from_bits(7)), Verdict::Static];
        let causes = Cause::ALL.into_iter();
        let all = causes.flat_map(|cause| [Verdict::Unsent(cause), Verdict::Failed(cause)]);
        for verdict in all.chain(others) {
            assert_eq!(Verdict::of(&verdict.value()), Some(verdict));
        }
        for bad in ["", "-", "machine=x", "unsent=", "unsent=XX99", "static=1", "other=PR01"] {
            assert_eq!(Verdict::of(&HeaderValue::from_static(bad)), None, "{bad}");
        }
    }
}
