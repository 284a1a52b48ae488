//! Pages of the edge's own.
//!
//! Never puts a word of the request into a page.

use bytes::Bytes;
use http::Response;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use crate::body::ReplyBody;
use crate::cause::Cause;

/// Makes the page of a cause.
pub(crate) fn page(cause: Cause, request_id: &str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::page(Bytes::from(html(cause, request_id))));
    *response.status_mut() = cause.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = cause.retry_after_s() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if matches!(cause, Cause::BadRequest | Cause::HeadTooLarge | Cause::HeadSlow | Cause::Crowded) {
        // What follows on the connection may be the rest of what was in doubt; or it is one too
        // many.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn html(cause: Cause, request_id: &str) -> String {
    let status = cause.status();
    let owner = match cause.owner_hint() {
        "" => String::new(),
        hint => format!(
            "<p>If it is yours: <code>{hint}</code>, <code>perch explain {}</code></p>\n",
            cause.code()
        ),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width\"><title>{status}</title>\
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1rem;\
color:#1c1f23;background:#fafaf8}}h1{{font-size:1.4rem}}small{{color:#667}}\
@media(prefers-color-scheme:dark){{body{{color:#e6e6e3;background:#17191c}}small{{color:#99a}}}}\
</style></head>\n<body><h1>{text}</h1>\n{owner}\
<p><small>{status} · {code} · {request_id}</small></p></body></html>\n",
        text = cause.text(),
        code = cause.code(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_carries_its_code_and_nothing_of_the_request() {
        for cause in Cause::ALL {
            let text = html(cause, "01A-ams");
            assert!(text.contains(cause.code()) && text.contains("01A-ams"), "{cause:?}");
            assert_eq!(page(cause, "x").status(), cause.status());
        }
    }
}
