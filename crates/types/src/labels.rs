//! Labels of a machine (`config.metadata`): their limits, and how they are changed without a new
//! version of the machine.
//!
//! Never decides who may change one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Labels of one machine.
pub const LABELS_MAX: usize = 64;
/// The longest key of a label in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 128;

/// The label that says how much of its share of requests a machine gets, in percent: of a hundred
/// requests it is a candidate for so many, beside others that are as near. 0 is none while another
/// that runs can take it.
pub const WEIGHT: &str = "perch_weight";
/// The weight of a machine without that label.
pub const WEIGHT_FULL: u8 = 100;

/// The labels of a machine.
pub type Labels = BTreeMap<String, String>;

/// A change of labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum LabelChange {
    /// These and no others.
    Replace {
        /// All there will be.
        labels: Labels,
    },
    /// These beside the others; nothing takes one away.
    Merge {
        /// Those that change.
        labels: BTreeMap<String, Option<String>>,
    },
}

impl LabelChange {
    /// Carries it out.
    pub fn apply(&self, to: &mut Labels) {
        match self {
            Self::Replace { labels } => to.clone_from(labels),
            Self::Merge { labels } => {
                for (key, value) in labels {
                    match value {
                        Some(value) => to.insert(key.clone(), value.clone()),
                        None => to.remove(key),
                    };
                }
            }
        }
    }

    /// Returns the one change that is this and then another.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        match (self, next) {
            (_, next @ Self::Replace { .. }) => next,
            (Self::Replace { mut labels }, next @ Self::Merge { .. }) => {
                next.apply(&mut labels);
                Self::Replace { labels }
            }
            (Self::Merge { mut labels }, Self::Merge { labels: next }) => {
                labels.extend(next);
                Self::Merge { labels }
            }
        }
    }
}

/// Checks how many labels there are and their keys; the error is what is wrong, to stand behind
/// the field's path.
///
/// # Errors
/// When there are too many, or a key is not one.
pub fn check(labels: &Labels) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("{} labels are more than {LABELS_MAX}", labels.len()));
    }
    labels.iter().try_for_each(|(key, value)| check_label(key, value))
}

/// Checks one label.
///
/// # Errors
/// When its key is not one, or the platform reads it and its value says nothing.
pub fn check_label(key: &str, value: &str) -> Result<(), String> {
    check_key(key)?;
    if key == WEIGHT && read_weight(value).is_none() {
        return Err(format!("{WEIGHT}: is not 0 to {WEIGHT_FULL}"));
    }
    Ok(())
}

/// Returns the weight that a machine's labels say; all of it where they say nothing that is one.
#[must_use]
pub fn weight(labels: &Labels) -> u8 {
    labels.get(WEIGHT).and_then(|value| read_weight(value)).unwrap_or(WEIGHT_FULL)
}

fn read_weight(value: &str) -> Option<u8> {
    value.parse().ok().filter(|weight| *weight <= WEIGHT_FULL)
}

/// Checks a label's key.
///
/// # Errors
/// When it is not one.
pub fn check_key(key: &str) -> Result<(), String> {
    if (1..=LABEL_KEY_BYTES_MAX).contains(&key.len()) && !key.chars().any(char::is_control) {
        return Ok(());
    }
    let shown: String = key.chars().filter(|c| !c.is_control()).take(40).collect();
    Err(format!("`{shown}` is not 1 to {LABEL_KEY_BYTES_MAX} bytes without control characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> Labels {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn merge(of: &[(&str, Option<&str>)]) -> LabelChange {
        let of = of.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)));
        LabelChange::Merge { labels: of.collect() }
    }

    #[test]
    fn two_changes_are_as_one() {
        let before = labels(&[("a", "1"), ("b", "2")]);
        let changes = [
            merge(&[("a", Some("3")), ("c", Some("4"))]),
            merge(&[("a", None), ("b", Some("5"))]),
            LabelChange::Replace { labels: labels(&[("d", "6")]) },
            LabelChange::Replace { labels: Labels::new() },
        ];
        for first in &changes {
            for second in &changes {
                let mut one_by_one = before.clone();
                first.apply(&mut one_by_one);
                second.apply(&mut one_by_one);
                let mut at_once = before.clone();
                first.clone().then(second.clone()).apply(&mut at_once);
                assert_eq!(one_by_one, at_once, "{first:?} {second:?}");
            }
        }
    }

    #[test]
    fn a_weight_is_a_percentage_and_all_of_it_when_nothing_is_said() {
        for (value, want) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("100", Some(100)),
            ("101", None),
            ("-1", None),
            ("", None),
        ] {
            let said = labels(&[(WEIGHT, value)]);
            assert_eq!(weight(&said), want.unwrap_or(WEIGHT_FULL), "{value}");
            assert_eq!(check(&said).is_ok(), want.is_some(), "{value}");
        }
        assert_eq!(weight(&Labels::new()), WEIGHT_FULL);
        assert_eq!(check_label(WEIGHT, "x").unwrap_err(), "perch_weight: is not 0 to 100");
        check_label("weight", "x").unwrap();
    }

    #[test]
    fn keys_and_their_number_have_a_limit() {
        check(&labels(&[("fly_process_group", "web"), ("ä b/c", "")])).unwrap();
        check(&labels(&[("", "x")])).unwrap_err();
        check(&labels(&[("a\nb", "x")])).unwrap_err();
        check_key(&"k".repeat(LABEL_KEY_BYTES_MAX + 1)).unwrap_err();
        let many: Labels = (0..=LABELS_MAX).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(check(&many).unwrap_err(), "65 labels are more than 64");
    }
}
