//! Where a request wants to go, by its own fields or by a replay (contract 4.2 and 4.3).
//!
//! Never leads to another app: it only chooses among the machines of one. Pure.

use http::HeaderMap;
use http::header::HeaderName;
use perch_types::MachineId;
use perch_types::directory::MachineRecord;

use crate::regions::{self, Wish};

const PREFER_REGION: HeaderName = HeaderName::from_static("fly-prefer-region");
const FORCE_REGION: HeaderName = HeaderName::from_static("fly-force-region");
const PREFER_INSTANCE: HeaderName = HeaderName::from_static("fly-prefer-instance-id");
const FORCE_INSTANCE: HeaderName = HeaderName::from_static("fly-force-instance-id");

/// Which machines a request may go to, and which it would rather.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Direction {
    /// The one machine, or none.
    pub(crate) only: Option<Instance>,
    /// The machine that is asked first.
    pub(crate) prefer: Option<Instance>,
    /// The machine that is not asked.
    pub(crate) without: Option<MachineId>,
    /// Regions, the most wanted first.
    pub(crate) regions: Vec<Wish>,
    /// Whether no other region will do.
    pub(crate) is_region_forced: bool,
}

/// A machine as it was named; one that can be no machine's id is none's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance(Result<MachineId, String>);

/// The longest name of a machine that is remembered to be told.
const NAME_BYTES_MAX: usize = 64;

impl Instance {
    /// Reads what names a machine.
    pub(crate) fn of(text: &str) -> Self {
        let text = text.trim();
        Self(text.parse().map_err(|_| text.chars().take(NAME_BYTES_MAX).collect()))
    }

    pub(crate) fn is(&self, record: &MachineRecord) -> bool {
        self.0.as_ref().is_ok_and(|id| *id == record.id)
    }

    pub(crate) fn as_str(&self) -> &str {
        match &self.0 {
            Ok(id) => id.as_str(),
            Err(text) => text,
        }
    }
}

impl From<MachineId> for Instance {
    fn from(id: MachineId) -> Self {
        Self(Ok(id))
    }
}

impl Direction {
    /// Reads what a client asks for; of several values of a field the first counts.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let forced = text(&FORCE_REGION);
        Self {
            only: text(&FORCE_INSTANCE).map(Instance::of),
            prefer: text(&PREFER_INSTANCE).map(Instance::of),
            without: None,
            regions: forced.or_else(|| text(&PREFER_REGION)).map(regions::list).unwrap_or_default(),
            is_region_forced: forced.is_some(),
        }
    }

    /// Returns whether any machine will do.
    pub(crate) fn is_free(&self) -> bool {
        *self == Self::default()
    }

    /// Returns how far down the list of wishes a machine is; nothing when it is out of question.
    pub(crate) fn rank(&self, record: &MachineRecord) -> Option<usize> {
        if self.only.as_ref().is_some_and(|only| !only.is(record))
            || self.without.as_ref() == Some(&record.id)
        {
            return None;
        }
        let place = self.regions.iter().position(|wish| wish.has(&record.region));
        match place {
            None if self.is_region_forced => None,
            None => Some(self.regions.len()),
            place => place,
        }
    }

    /// Returns whether a machine is the one that is asked first.
    pub(crate) fn prefers(&self, record: &MachineRecord) -> bool {
        self.prefer.as_ref().is_some_and(|prefer| prefer.is(record))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use perch_types::MachineState;

    use super::*;
    use crate::live::tests::record;

    fn direction(fields: &[(&'static str, &'static str)]) -> Direction {
        let headers = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        Direction::of(&headers)
    }

    #[test]
    fn the_clients_fields_order_and_limit_machines() {
        let one = record(1, "web", MachineState::Started);
        for (fields, want) in [
            (&[][..], Some(0)),
            (&[("fly-prefer-region", "ams")], Some(0)),
            (&[("fly-prefer-region", "fra,eu")], Some(1)),
            (&[("fly-prefer-region", "fra,us")], Some(2)),
            (&[("fly-force-region", "fra,us")], None),
            (&[("fly-force-region", "fra,any")], Some(1)),
            (&[("fly-force-region", "no region")], None),
            (&[("fly-force-instance-id", "00000000000001")], Some(0)),
            (&[("fly-force-instance-id", "00000000000002")], None),
            (&[("fly-force-instance-id", "nonsense")], None),
            (&[("fly-prefer-instance-id", "00000000000002")], Some(0)),
        ] {
            assert_eq!(direction(fields).rank(&one), want, "{fields:?}");
        }
        assert!(direction(&[("fly-prefer-instance-id", "00000000000001")]).prefers(&one));
        assert!(!direction(&[("fly-prefer-instance-id", "x")]).prefers(&one));
        assert!(direction(&[("accept", "x")]).is_free());
        let without = Direction { without: Some(one.id.clone()), ..Direction::default() };
        assert_eq!(without.rank(&one), None);
    }
}
