//! The values of records of DNS-01, by the label that the platform's zone has them at.
//!
//! Never holds one longer than the order that wants it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::shards::Shards;

/// The values of one label, by the key of the order.
type Values = Arc<BTreeMap<String, String>>;

/// Values by label. A clone is cheap, and is changed without the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Texts {
    values: Shards<Values>,
    /// Where the value of an order is, by the order's key.
    labels: Shards<String>,
}

impl Texts {
    /// Takes the label and value that an order wants told now, if it does.
    pub(super) fn put(&mut self, order: &str, wanted: Option<(String, String)>) {
        if let Some(label) = self.labels.get(order).cloned() {
            self.labels.remove(order);
            let mut left = self.values.get(&label).cloned().unwrap_or_default();
            Arc::make_mut(&mut left).remove(order);
            match left.is_empty() {
                true => self.values.remove(&label),
                false => self.values.insert(&label, left),
            }
        }
        if let Some((label, value)) = wanted {
            let mut values = self.values.get(&label).cloned().unwrap_or_default();
            Arc::make_mut(&mut values).insert(order.to_owned(), value);
            self.values.insert(&label, values);
            self.labels.insert(order, label);
        }
    }

    /// Returns the values of a label: of two orders under way, for a name and for all below it,
    /// there are two.
    pub(super) fn of(&self, label: &str) -> Vec<String> {
        let values = self.values.get(label).map(|values| values.values().cloned().collect());
        values.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(label: &str, value: &str) -> Option<(String, String)> {
        Some((label.to_owned(), value.to_owned()))
    }

    #[test]
    fn orders_of_one_label_are_told_together_and_each_ends_by_itself() {
        let mut texts = Texts::default();
        texts.put("a", wanted("x", "1"));
        texts.put("b", wanted("x", "2"));
        texts.put("c", wanted("y", "3"));
        let before = texts.clone();
        assert_eq!(texts.of("x"), ["1", "2"]);
        assert_eq!(texts.of("y"), ["3"]);
        // The next order of the same name replaces what the one before wanted.
        texts.put("a", wanted("x", "4"));
        texts.put("c", wanted("x", "3"));
        assert_eq!(texts.of("x"), ["4", "2", "3"]);
        assert!(texts.of("y").is_empty());
        for order in ["a", "b", "c", "c", "none"] {
            texts.put(order, None);
        }
        assert!(texts.of("x").is_empty());
        assert_eq!(before.of("x").len(), 2, "a copy stays as it was");
    }
}
