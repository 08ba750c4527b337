//! The range of addresses of a network. Pure.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

/// The smallest range that holds a gateway and some sessions, as a prefix length.
const MAX_PREFIX: [u8; 2] = [29, 120];

/// A range of addresses, as `10.80.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet(IpNet);

impl Subnet {
    pub const fn is_ipv6(&self) -> bool {
        matches!(self.0, IpNet::V6(_))
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// # Errors
    /// What is expected, for people.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected a range of addresses, for example 10.80.0.0/16";
        let range: IpNet = text.parse().map_err(|_| expected.to_owned())?;
        let most = MAX_PREFIX[usize::from(matches!(range, IpNet::V6(_)))];
        if range.prefix_len() == 0 || range.prefix_len() > most {
            return Err(format!("expected a prefix length of 1 to {most}"));
        }
        if range != range.trunc() {
            return Err(format!("the range begins at another address: write {}", range.trunc()));
        }
        Ok(Self(range))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_is_written() {
        for text in ["10.80.0.0/16", "192.168.7.8/29", "fd00:1::/64", "128.0.0.0/1"] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_range_says_what_is_expected() {
        for (text, why) in [
            ("10.80.0.0", "for example 10.80.0.0/16"),
            ("10.80.0/16", "for example 10.80.0.0/16"),
            ("10.80.0.0/", "for example 10.80.0.0/16"),
            ("10.80.0.0/0", "1 to 29"),
            ("10.80.0.0/30", "1 to 29"),
            ("fd00::/121", "1 to 120"),
            ("10.80.0.1/16", "write 10.80.0.0/16"),
            ("fd00::1/64", "write fd00::/64"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
