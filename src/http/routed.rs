//! Answers of other nodes.

use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};

use crate::cluster::Routed;

/// The header with the name of the node that answered, if it is not this one.
const SERVED_BY: &str = "x-ostler-served-by";

/// An answer with the name of the node that gave it.
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
