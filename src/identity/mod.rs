//! The cluster token, the keys derived from it, and the local accounts.
//!
//! The token gives root on every host of the cluster, because access to the engine's socket
//! does. So it never appears in an argument, an environment, a log or an answer.

mod access;
mod accounts;
mod authority;
mod certificate;
mod credentials;
mod noting;
mod strength;
mod token_file;

pub use access::Stranger;
pub use accounts::Accounts;
pub use authority::node_of;
pub use certificate::{Unfit, end as certificate_end, unfit};
pub use credentials::Credentials;
pub use noting::Noted;
pub use strength::TooWeak;
pub use token_file::{Error, Token, generate, read, write_new};

/// Why keys cannot be derived from a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot derive keys from the cluster token: {0}")]
pub struct KeyError(String);

impl From<rcgen::Error> for KeyError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustls::Error> for KeyError {
    fn from(error: rustls::Error) -> Self {
        Self(error.to_string())
    }
}
