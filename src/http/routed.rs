//! Answers that another node gave.

use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};

use crate::cluster::Routed;

/// The node that answered, where it is not the one that was asked.
const SERVED_BY: &str = "x-ostler-served-by";

/// An answer that says who gave it.
pub(super) struct Served<R>(pub(super) Routed<R>);

impl<R: IntoResponse> IntoResponse for Served<R> {
    fn into_response(self) -> Response {
        let Routed { answer, by } = self.0;
        let mut response = answer.into_response();
        if let Some(node) = by.and_then(|name| HeaderValue::from_str(name.as_str()).ok()) {
            response.headers_mut().insert(SERVED_BY, node);
        }
        response
    }
}
