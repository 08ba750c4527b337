//! Metrics for Prometheus: [`figures`] of the snapshots, and what every part counts.
//!
//! Each scrape builds them anew.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::IntoResponse;

mod figures;
#[cfg(test)]
mod reference;
mod requests;
#[cfg(test)]
mod sample;

use figures::Figures;
pub(super) use requests::{Requests, Streaming, measure};

use super::Shared;
use super::accept::preference;
use super::error::Refusal;
use super::extract::{NoParameters, Query};
use crate::images;
use crate::metrics::{Format, Process, Scrape, Source};
use crate::types::ErrorCode;

/// The answer depends on this header of the request.
const VARY: (header::HeaderName, HeaderValue) = (header::VARY, HeaderValue::from_static("accept"));

/// The format that the request prefers; that of Prometheus, which every scraper reads, if it has no preference.
fn preferred(headers: &HeaderMap) -> Format {
    let prometheus = preference(headers, "text/plain", "0.0.4");
    let open_metrics = preference(headers, "application/openmetrics-text", "1.0.0");
    if open_metrics > prometheus { Format::OpenMetrics } else { Format::Prometheus }
}

const fn content_type(format: Format) -> HeaderValue {
    HeaderValue::from_static(match format {
        Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
    })
}

/// Shows metrics in the text format of Prometheus, or as OpenMetrics if the header `Accept` prefers it.
#[utoipa::path(get, path = "/metrics", tag = "status", responses(
    (status = 200, description = "the metrics",
        content((String = "text/plain"), (String = "application/openmetrics-text"))),
))]
pub(super) async fn metrics(
    State(app): Shared,
    _: Query<NoParameters>,
    headers: HeaderMap,
) -> Result<impl IntoResponse + use<>, Refusal> {
    let cluster = &app.api.cluster;
    let figures = Figures {
        node: cluster.host().node(),
        sessions: cluster.host().sessions.snapshot(),
        view: cluster.view(),
        leadership: cluster.leadership(),
        certificate_end: app.certificate.as_ref().and_then(|certificate| certificate.borrow().end()),
        images: cluster.host().images.as_ref().map(images::Handle::snapshot),
    };
    let mut scrape = Scrape::of(figures.node.name.as_str());
    for source in [&figures as &dyn Source, &app.api.metrics, &app.requests] {
        scrape.add(source);
    }
    scrape.add_common(&Process);
    let format = preferred(&headers);
    let text =
        scrape.encode(format).map_err(|_| Refusal::new(ErrorCode::Internal, "cannot encode the metrics as text"))?;
    Ok(([(header::CONTENT_TYPE, content_type(format)), VARY], text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_preferred_one_and_that_of_prometheus_by_default() {
        let preferred = |accept: &str| {
            super::preferred(&HeaderMap::from_iter([(header::ACCEPT, accept.parse::<HeaderValue>().unwrap())]))
        };
        assert_eq!(super::preferred(&HeaderMap::new()), Format::Prometheus);
        for accept in [
            "*/*",
            "text/plain",
            "text/html, */*;q=0.8",
            "application/json",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0.2, text/*",
            "text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0",
        ] {
            assert_eq!(preferred(accept), Format::Prometheus, "{accept}");
        }
        for accept in [
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "*/*, application/openmetrics-text",
            "text/plain;q=0.5, application/*;q=0.6",
            // Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
        ] {
            assert_eq!(preferred(accept), Format::OpenMetrics, "{accept}");
        }
    }
}
