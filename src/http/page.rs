//! The parameters of lists with pages.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer};
use utoipa::{IntoParams, ToSchema};

use crate::types::List;

/// Items of a page by default.
const DEFAULT_LIMIT: usize = 100;
/// Items of a page at most.
const MAX_LIMIT: usize = 1000;
/// Bytes of a key at most. The longest keys are a name, or a time and an id.
const MAX_KEY: usize = 128;

/// The parameters of a list without filters.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// The start of the page: the `next_cursor` of the previous page.
    pub(super) cursor: Option<Cursor>,
    /// The maximum number of items in the page.
    #[serde(default)]
    pub(super) limit: Limit,
}

/// The maximum number of items in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = u16, minimum = 1, maximum = 1000, default = 100)]
pub(super) struct Limit(usize);

impl Default for Limit {
    fn default() -> Self {
        Self(DEFAULT_LIMIT)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let limit = usize::deserialize(from)?;
        if (1..=MAX_LIMIT).contains(&limit) {
            return Ok(Self(limit));
        }
        Err(serde::de::Error::custom(format!("{limit} is out of range; expected 1 to {MAX_LIMIT}")))
    }
}

/// The end of a page. Opaque to callers: any even number of hexadecimal digits is a valid place in any list.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, pattern = "^([0-9a-f]{2}){1,128}$", max_length = 256)]
pub(super) struct Cursor(Vec<u8>);

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match HEXLOWER.decode(text.as_bytes()) {
            Ok(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Self(key)),
            _ => Err(serde::de::Error::custom("not a cursor; expected the next_cursor of the previous page")),
        }
    }
}

impl Limit {
    pub(super) const fn get(self) -> usize {
        self.0
    }
}

impl Cursor {
    /// The key of the last item of the previous page. Keys are UTF-8: a cursor of other bytes lies between keys.
    pub(super) fn key(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// The page after `cursor` of items that are sorted by the bytes of their keys.
pub(super) fn page<T>(items: impl IntoIterator<Item = (String, T)>, cursor: Option<&Cursor>, limit: Limit) -> List<T> {
    List::page(items, cursor.map(Cursor::key).as_deref(), limit.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn cursor(text: &str) -> Option<Cursor> {
        serde_json::from_value(serde_json::Value::from(text)).ok()
    }

    #[test]
    fn limits_and_cursors_are_bounded() {
        let limit = |n: i64| serde_json::from_value::<Limit>(n.into()).is_ok();
        assert!(limit(1) && limit(1000));
        assert!(!limit(0) && !limit(1001) && !limit(-1));
        assert!(cursor("00ff").is_some());
        for bad in ["", "0", "zz", "FF", &"00".repeat(129)] {
            assert!(cursor(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn pages_together_are_the_list(keys in prop::collection::btree_set("[a-z0-9.]{1,5}", 0..40), limit in 1..10usize) {
            let list = |after: Option<&Cursor>| page(keys.iter().map(|k| (k.clone(), k.clone())), after, Limit(limit));
            let mut seen = Vec::new();
            let mut after = None;
            loop {
                let part = list(after.as_ref());
                prop_assert!(part.items.len() <= limit);
                seen.extend(part.items);
                match part.next_cursor {
                    Some(next) => after = Some(cursor(&next).unwrap()),
                    None => break,
                }
            }
            prop_assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), keys.clone());
            prop_assert_eq!(seen.len(), keys.len());
        }
    }
}
