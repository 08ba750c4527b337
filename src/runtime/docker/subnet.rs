//! The range of addresses of a network. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The smallest range that holds a gateway and some sessions, as a prefix length.
const MAX_PREFIX: [u8; 2] = [29, 120];

/// A range of addresses, as `10.80.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    network: IpAddr,
    prefix: u8,
}

impl Subnet {
    pub const fn is_ipv6(&self) -> bool {
        self.network.is_ipv6()
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// # Errors
    /// What is expected, for people.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a range of addresses, for example 10.80.0.0/16".to_owned();
        let (network, prefix) = text.split_once('/').ok_or_else(expected)?;
        let (network, prefix): (IpAddr, u8) = network.parse().ok().zip(prefix.parse().ok()).ok_or_else(expected)?;
        let most = MAX_PREFIX[usize::from(network.is_ipv6())];
        if prefix == 0 || prefix > most {
            return Err(format!("expected a prefix length of 1 to {most}"));
        }
        let first = first_of(network, prefix);
        if network != first {
            return Err(format!("the range begins at another address: write {first}/{prefix}"));
        }
        Ok(Self { network, prefix })
    }
}

/// The first address of the range that has this address. `prefix` is not 0.
fn first_of(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << (32 - u32::from(prefix)))).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - u32::from(prefix)))).into(),
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
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
