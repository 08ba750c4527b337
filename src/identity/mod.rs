//! The cluster token and what is made from it.
//!
//! The token is root on every host of the cluster, because the engine's socket
//! is: it never reaches an argument, an environment, a log or an answer.

mod authority;
mod credentials;
mod strength;
mod token_file;

pub use authority::node_of;
pub use credentials::Credentials;
pub use strength::TooWeak;
pub use token_file::{Error, Token, generate, read, write_new};

/// Why no keys can be made of a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no keys can be made of the cluster token: {0}")]
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
