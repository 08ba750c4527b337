//! Paths and queries of the API, with the caller's names and values escaped.

use std::fmt;

/// A path below `/v1` and its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    path: String,
    query: String,
}

impl Route {
    /// `/v1`, and each segment after a slash.
    pub(super) fn new(segments: &[&str]) -> Self {
        let mut path = "/v1".to_owned();
        for segment in segments {
            path.push('/');
            escape(segment, &mut path);
        }
        Self { path, query: String::new() }
    }

    /// Adds a pair to the query.
    pub(super) fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.query.push(if self.query.is_empty() { '?' } else { '&' });
        escape(name, &mut self.query);
        self.query.push('=');
        escape(&value.to_string(), &mut self.query);
        self
    }

    /// Adds a pair to the query if there is a value.
    pub(super) fn with_any(self, name: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path, self.query)
    }
}

/// Percent-encodes all but the unreserved characters (RFC 3986). A segment `.` or `..` is escaped too,
/// since clients and proxies resolve it.
fn escape(text: &str, to: &mut String) {
    let dots = matches!(text, "." | "..");
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => to.push(char::from(byte)),
            b'.' if !dots => to.push('.'),
            other => to.push_str(&format!("%{other:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_name_cannot_change_the_path_or_the_query() {
        let route = Route::new(&["sessions", "a/../b?c"]).with("user", "a&b=c").with_any("state", None::<&str>);
        assert_eq!(route.to_string(), "/v1/sessions/a%2F..%2Fb%3Fc?user=a%26b%3Dc");
        assert_eq!(Route::new(&["sessions", ".."]).to_string(), "/v1/sessions/%2E%2E");
        assert_eq!(Route::new(&["nodes"]).with("a", 1).with("b", true).to_string(), "/v1/nodes?a=1&b=true");
    }
}
