//! Why an image was not pulled, from the engine's own words, which quote the registry's. Pure.
//!
//! They were collected from Docker 20.10 to 29, with both kinds of image stores. The first line of the table that fits
//! decides: a full disk and a limit are told in sentences that also name a registry, and an unreachable registry in
//! sentences that also say "not found".

use super::Failure;
use crate::runtime::images::{PullCause, PullError};
use crate::types::ImageReference;

/// What is said of each cause, in lower case.
const WORDS: [(PullCause, &[&str]); 6] = [
    (PullCause::DiskFull, &["no space left on device", "disk quota exceeded"]),
    (
        PullCause::Limited,
        &[
            "toomanyrequests",
            "429 too many requests",
            "http 429",
            "status: 429",
            "status code 429",
            "too many requests",
            "rate limit",
            "rate exceeded",
        ],
    ),
    (PullCause::UnknownAuthority, &["certificate signed by unknown authority"]),
    (
        PullCause::Registry,
        &[
            "dial tcp",
            "no such host",
            "server misbehaving",
            "connection refused",
            "connection reset",
            "broken pipe",
            "network is unreachable",
            "no route to host",
            "timeout",
            "timed out",
            "deadline exceeded",
            "awaiting headers",
            "proxyconnect",
            "unexpected eof",
            ": eof",
            "x509:",
            "tls:",
            "http response to https client",
            "http status: 5",
            "http 5",
            "internal server error",
            "bad gateway",
            "service unavailable",
            "gateway time",
        ],
    ),
    (
        PullCause::Denied,
        &[
            "unauthorized",
            "no basic auth credentials",
            "authentication required",
            "authorization failed",
            "insufficient_scope",
            "denied",
            "forbidden",
            "incorrect username or password",
        ],
    ),
    (
        PullCause::Absent,
        &[
            "manifest unknown",
            "name unknown",
            "not found",
            "no matching manifest",
            "no match for platform",
            "does not match the specified platform",
            "does not provide the specified platform",
            "does not exist",
            "invalid reference format",
        ],
    ),
];

/// An answer of the engine is about the image or its registry; a lost call is not.
pub(in crate::runtime::docker) fn of_pull(image: &ImageReference, failure: Failure) -> PullError {
    match failure {
        Failure::Said { status, message } => {
            let cause = cause(image, status, &message);
            PullError { cause, message: format!("cannot pull {image}: {message}{}", advice(image, cause)) }
        }
        Failure::Lost(message) | Failure::Unsupported(message) => PullError { cause: PullCause::Engine, message },
    }
}

fn cause(image: &ImageReference, status: u16, message: &str) -> PullCause {
    // A name may hold any of the words.
    let text = message.to_lowercase().replace(&image.repository().to_lowercase(), " ");
    let text = match image.digest().or(image.tag()) {
        Some(tag) => text.replace(&format!(":{}", tag.to_lowercase()), " ").replace(&format!("/{tag}"), " "),
        None => text,
    };
    let by_words = WORDS.iter().find(|(_, words)| words.iter().any(|words| text.contains(words)));
    match (by_words, status) {
        (Some((PullCause::DiskFull, _)), _) => PullCause::DiskFull,
        (_, 429) => PullCause::Limited,
        (Some((cause, _)), _) => *cause,
        (None, 401 | 403) => PullCause::Denied,
        (None, 404) => PullCause::Absent,
        (None, _) => PullCause::Other,
    }
}

/// How to mend it, if that is not plain from the engine's words.
fn advice(image: &ImageReference, cause: PullCause) -> String {
    match cause {
        PullCause::UnknownAuthority => format!(
            "; the container engine must know the authority: put its certificate into /etc/docker/certs.d/{}/ca.crt",
            image.registry()
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(image: &str, status: u16, message: &str) -> PullError {
        let image = ImageReference::parse(image).unwrap();
        of_pull(&image, Failure::Said { status, message: message.to_owned() })
    }

    /// Messages of Docker 20.10 to 29: of graph drivers first, then of containerd's store.
    const SAID: &[(PullCause, &str)] = &[
        (PullCause::Absent, "manifest for r:5000/x:1 not found: manifest unknown: manifest unknown"),
        (PullCause::Absent, "repository r:5000/x not found: name unknown: repository name not known to registry"),
        (PullCause::Absent, "no matching manifest for linux/arm64/v8 in the manifest list entries"),
        (
            PullCause::Absent,
            "image with reference r:5000/x:1 was found but does not match the specified platform: \
             wanted linux/arm64, actual: linux/amd64",
        ),
        (PullCause::Absent, "failed to resolve reference \"r:5000/x:1\": r:5000/x:1: not found"),
        (PullCause::Absent, "no match for platform in manifest: not found"),
        (
            PullCause::Denied,
            "pull access denied for x, repository does not exist or may require 'docker login': denied: \
             requested access to the resource is denied",
        ),
        (PullCause::Denied, "Head \"http://r:5000/v2/x/manifests/1\": no basic auth credentials"),
        (PullCause::Denied, "Get \"https://r/v2/x/manifests/1\": unauthorized: authentication required"),
        (PullCause::Denied, "Get https://registry-1.docker.io/v2/: unauthorized: incorrect username or password"),
        (
            PullCause::Denied,
            "failed to resolve reference \"docker.io/library/x:1\": pull access denied, repository does not exist or may \
             require authorization: server message: insufficient_scope: authorization failed",
        ),
        (
            PullCause::Denied,
            "failed to authorize: failed to fetch oauth token: unexpected status from GET request to \
             https://auth.docker.io/token: 401 Unauthorized",
        ),
        (
            PullCause::Limited,
            "toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating and \
             upgrading: https://www.docker.com/increase-rate-limit",
        ),
        (PullCause::Limited, "toomanyrequests: Rate exceeded"),
        (PullCause::Limited, "toomanyrequests: retry-after: 985.86µs, allowed: 44000/minute"),
        (PullCause::Limited, "received unexpected HTTP status: 429 Too Many Requests"),
        (
            PullCause::Limited,
            "error parsing HTTP 429 response body: invalid character 'T' looking for beginning of value: \
             \"Too Many Requests (HAP429)\"",
        ),
        (
            PullCause::Limited,
            "failed to copy: httpReadSeeker: failed open: unexpected status code \
             https://registry-1.docker.io/v2/library/x/manifests/sha256:ab: 429 Too Many Requests - Server message: \
             toomanyrequests: You have reached your pull rate limit.",
        ),
        (PullCause::Registry, "Get \"https://r/v2/\": dial tcp: lookup r on 10.0.0.1:53: no such host"),
        (PullCause::Registry, "Get \"http://r:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused"),
        (
            PullCause::Registry,
            "Get \"https://r/v2/\": net/http: request canceled while waiting for connection \
             (Client.Timeout exceeded while awaiting headers)",
        ),
        (PullCause::Registry, "Get \"https://r/v2/\": net/http: TLS handshake timeout"),
        (PullCause::Registry, "Get \"https://r:5000/v2/\": http: server gave HTTP response to HTTPS client"),
        (PullCause::Registry, "received unexpected HTTP status: 503 Service Unavailable"),
        (PullCause::Registry, "error parsing HTTP 502 response body: invalid character '<': \"<html>\""),
        (PullCause::Registry, "error pulling image configuration: download failed after attempts=6: unexpected EOF"),
        (PullCause::Registry, "Get \"https://r/v2/\": x509: certificate has expired or is not yet valid"),
        (
            PullCause::Registry,
            "failed to resolve reference \"r/x:1\": failed to do request: Head \"https://r/v2/x/manifests/1\": dial tcp: \
             lookup r: server misbehaving",
        ),
        (
            PullCause::Registry,
            "failed to resolve reference \"r/x:1\": unexpected status from HEAD request to https://r/v2/x/manifests/1: \
             500 Internal Server Error",
        ),
        (PullCause::UnknownAuthority, "Get \"https://r/v2/\": x509: certificate signed by unknown authority"),
        (
            PullCause::UnknownAuthority,
            "failed to do request: Head \"https://r/v2/x/manifests/1\": tls: failed to verify certificate: x509: \
             certificate signed by unknown authority",
        ),
        (PullCause::DiskFull, "failed to register layer: write /usr/lib/x.so: no space left on device"),
        (
            PullCause::DiskFull,
            "failed to register layer: ApplyLayer exit status 1 stdout:  stderr: write /noise: no space left on device",
        ),
        (PullCause::DiskFull, "write /var/lib/docker/tmp/GetImageBlob1: disk quota exceeded"),
        (
            PullCause::DiskFull,
            "failed to copy: failed to send write: write /var/lib/docker/containerd/ingest/1/data: \
             no space left on device: unknown",
        ),
        (PullCause::Other, "filesystem layer verification failed for digest sha256:ab"),
    ];

    #[test]
    fn each_cause_is_told_by_the_engines_words() {
        for (cause, message) in SAID {
            assert_eq!(pull("r:5000/x:1", 500, message).cause, *cause, "{message}");
        }
    }

    #[test]
    fn the_status_tells_what_the_words_do_not() {
        for (status, cause) in [
            (429, PullCause::Limited),
            (401, PullCause::Denied),
            (403, PullCause::Denied),
            (404, PullCause::Absent),
            (500, PullCause::Other),
        ] {
            assert_eq!(pull("x:1", status, "odd").cause, cause, "{status}");
        }
        assert_eq!(pull("x:1", 404, "Get \"https://r/v2/\": dial tcp: no such host").cause, PullCause::Registry);
        assert_eq!(pull("x:1", 429, "no space left on device").cause, PullCause::DiskFull);
    }

    #[test]
    fn the_name_of_the_image_tells_nothing() {
        let missing = "manifest for r:5000/denied/toomanyrequests:timeout not found: manifest unknown";
        assert_eq!(pull("r:5000/denied/toomanyrequests:timeout", 404, missing).cause, PullCause::Absent);
    }

    #[test]
    fn an_unknown_authority_is_mended_in_the_engine() {
        let error =
            pull("r:5000/x:1", 500, "Get \"https://r:5000/v2/\": x509: certificate signed by unknown authority");
        assert!(error.message.ends_with("into /etc/docker/certs.d/r:5000/ca.crt"), "{error}");
        assert!(error.message.starts_with("cannot pull r:5000/x:1: Get "), "{error}");
    }
}
