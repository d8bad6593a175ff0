//! The OpenAPI document, made from the handlers and from the types of the wire.

use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::api;

#[derive(OpenApi)]
#[openapi(
    info(title = "thex serve", description = "Runs transformers on encrypted data. The server has no key that decrypts."),
    paths(
        api::health, api::metrics, api::circuits, api::circuit, api::bundle, api::report, api::keys, api::key, api::put_key,
        api::delete_key, api::jobs, api::job, api::submit, api::cancel, api::forget, api::result, api::events
    ),
    security(("bearer" = [])),
    modifiers(&Bearer)
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// The document, as JSON.
#[must_use]
pub fn text() -> String {
    Document::openapi().to_pretty_json().unwrap_or_default()
}
