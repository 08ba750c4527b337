//! Documents of the API on the wire.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// A document of the API, carried as its JSON: it reads the same on the wire as over HTTP, and a
/// node that knows fewer fields than its peer still reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document<T>(pub T);

impl<T: Serialize> Serialize for Document<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let json = serde_json::to_string(&self.0).map_err(ser::Error::custom)?;
        to.serialize_str(&json)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Document<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let json = String::deserialize(from)?;
        serde_json::from_str(&json).map(Self).map_err(de::Error::custom)
    }
}
