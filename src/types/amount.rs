//! Cores and bytes: integers in memory, numbers in JSON, and short text for people.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

/// CPU cores, stored as whole millicores so that sums are exact.
///
/// JSON: a number with at most three decimals. Text: the same, or `250m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cores(u64);

impl Cores {
    pub const ZERO: Self = Self(0);
    /// A million cores, more than any host or cluster has: a larger figure is a typing error.
    pub const MAX: Self = Self(1_000_000 * 1000);

    pub const fn from_milli(milli: u64) -> Self {
        Self(milli)
    }

    pub const fn whole(cores: u32) -> Self {
        Self(cores as u64 * 1000)
    }

    pub const fn milli(self) -> u64 {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// A measured number of cores, rounded to the nearest millicore. `None` if it is negative, not a number or
    /// above [`Cores::MAX`].
    pub fn from_measured(cores: f64) -> Option<Self> {
        let milli = (cores * 1000.0).round();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // range checked right here
        (milli >= 0.0 && milli <= Self::MAX.0 as f64).then_some(Self(milli as u64))
    }

    fn from_json(cores: f64) -> Result<Self, String> {
        let milli = cores * 1000.0;
        let given = Self::from_measured(cores)
            .ok_or_else(|| format!("{cores} is not a number of cores; expected 0 to {}", Self::MAX))?;
        // Half a thousandth of a millicore: larger than the rounding error of any decimal in this range as an f64.
        if (milli - milli.round()).abs() > 5e-4 {
            return Err(format!("{cores} has more than 3 decimals; the step is 0.001 core"));
        }
        Ok(given)
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.0 / 1000, self.0 % 1000) {
            (whole, 0) => whole.to_string(),
            (whole, milli) => format!("{whole}.{milli:03}").trim_end_matches('0').to_owned(),
        };
        f.pad(&text)
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a number of cores; expected for example 2, 0.5 or 250m");
        if let Some(milli) = text.strip_suffix('m') {
            let milli: u64 = milli.parse().map_err(|_| wrong())?;
            return if milli <= Self::MAX.0 { Ok(Self(milli)) } else { Err(wrong()) };
        }
        Self::from_json(text.parse().map_err(|_| wrong())?)
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            to.serialize_u64(self.0 / 1000)
        } else {
            to.serialize_f64(self.0 as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Cores;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of cores with at most 3 decimals")
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Cores, E> {
                Cores::from_json(v).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Cores, E> {
                Cores::from_json(v as f64).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Cores, E> {
                Cores::from_json(v as f64).map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl PartialSchema for Cores {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Number)
            .description(Some("CPU cores, in steps of 0.001"))
            .minimum(Some(0.0))
            .maximum(Some(1_000_000.0))
            .multiple_of(Some(0.001))
            .into()
    }
}
impl ToSchema for Cores {}

/// A number of bytes.
///
/// JSON: an integer, or text. Text: `1073741824`, `512M`, `4GiB`, `4GB`.
/// `K M G T` and `KiB MiB GiB TiB` are powers of 1024, as Docker and systemd
/// read them; `KB MB GB TB` are powers of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(u64);

impl Bytes {
    pub const ZERO: Self = Self(0);
    /// 8 EiB less one: the largest signed 64-bit number, which is the type of sizes in the engines' APIs.
    pub const MAX: Self = Self(i64::MAX as u64);

    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    pub const fn gib(gib: u64) -> Self {
        Self(gib << 30)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Bytes {
    /// At most one decimal and a binary unit, for people: `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in UNITS {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        let digits = usize::from(unit != "B" && value < 100.0 && value.fract() >= 0.05);
        f.pad(&format!("{value:.digits$} {unit}"))
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; expected for example 1073741824, 512M, 4GiB or 4GB");
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(factor).ok_or_else(wrong)?,
            Err(_) => {
                let value = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
                if !(0.0..9e18).contains(&value) {
                    return Err(wrong());
                }
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // range checked above
                {
                    value.round() as u64
                }
            }
        };
        if bytes > Self::MAX.0 {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or text such as \"512M\" or \"4GiB\"")
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Bytes, E> {
                let wrong = || E::custom(format!("{v} bytes is out of range; expected 0 to {}", Bytes::MAX.0));
                if v > Bytes::MAX.0 { Err(wrong()) } else { Ok(Bytes(v)) }
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Bytes, E> {
                u64::try_from(v).map(Bytes).map_err(|_| E::custom(format!("{v} is negative; expected 0 or more bytes")))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Bytes, E> {
                // JSON has one number type: 1.0 is the same number as 1.
                if v.fract() == 0.0 && (0.0..9e18).contains(&v) {
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // range checked right here
                    return Ok(Bytes(v as u64));
                }
                Err(E::custom(format!("{v} is not a whole number of bytes")))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Bytes, E> {
                v.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl PartialSchema for Bytes {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        OneOfBuilder::new()
            .item(
                ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
                    .minimum(Some(0.0))
                    .maximum(Some(i64::MAX as f64)),
            )
            .item(
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some("accepted as input: 512M, 4GiB, 4GB"))
                    .pattern(Some(r"^[0-9]{1,6}([KMGkmg]([Ii]?[Bb])?)?$")),
            )
            .into()
    }
}
impl ToSchema for Bytes {}

macro_rules! sums {
    ($($amount:ident),*) => {$(
        impl Add for $amount {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                self.saturating_add(other)
            }
        }
        impl Sum for $amount {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self::ZERO, Add::add)
            }
        }
    )*};
}
sums!(Cores, Bytes);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cores_in_json_have_at_most_three_decimals() {
        let cores = |json: &str| serde_json::from_str::<Cores>(json).map_err(|e| e.to_string());
        assert_eq!(cores("1.5").unwrap().milli(), 1500);
        assert_eq!(cores("0.001").unwrap().milli(), 1);
        assert!(cores("0.0001").unwrap_err().contains("more than 3 decimals"));
        assert!(cores("-1").unwrap_err().contains("-1 is not a number of cores"));
        assert!(cores("1e300").is_err());
        assert!(cores("\"two\"").is_err());
    }

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512M", 512 << 20),
            ("4GiB", 4 << 30),
            ("4GB", 4_000_000_000),
            ("1.5g", 3 << 29),
            ("7 kB", 7000),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap().get(), bytes, "{text}");
        }
        for text in ["", "-1", "4X", "1e9", "nan", "99999999999T", "M"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn figures_for_people_are_short() {
        assert_eq!(Cores::from_milli(2500).to_string(), "2.5");
        assert_eq!(Cores::whole(12).to_string(), "12");
        assert_eq!(Bytes::gib(6).to_string(), "6 GiB");
        assert_eq!(Bytes::mib(1536).to_string(), "1.5 GiB");
        assert_eq!(Bytes::new(17).to_string(), "17 B");
    }

    proptest! {
        #[test]
        fn cores_survive_json(milli in 0..=Cores::MAX.milli()) {
            let cores = Cores::from_milli(milli);
            let json = serde_json::to_string(&cores).unwrap();
            prop_assert_eq!(serde_json::from_str::<Cores>(&json).unwrap(), cores);
            prop_assert_eq!(cores.to_string().parse::<Cores>().unwrap(), cores);
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in ".{0,24}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Cores>();
        }
    }
}
