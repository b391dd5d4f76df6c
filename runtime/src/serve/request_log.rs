//! One log line per request, however it ends.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use hyper::http::request::Parts;

use super::metrics::Stages;

/// Status in the log of a request whose client left before the response, as nginx has it.
const CLIENT_LEFT: u16 = 499;

/// Maximum length of a request's id and of its path in the log.
const MAX_LENGTH: usize = 128;

/// The log line of a request, written when this is dropped.
pub(super) struct RequestLog {
    pub(super) id: String,
    method: String,
    path: String,
    started: Instant,
    pub(super) status: u16,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// Where the time of its images went, if it had any.
    pub(super) stages: Option<Stages>,
}

impl RequestLog {
    pub(super) fn new(request: &Parts) -> Self {
        let header = request.headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let id = header.filter(|id| is_sane(id)).map_or_else(new_id, str::to_owned);
        let mut path = request.uri.path().to_owned();
        path.truncate(path.floor_char_boundary(MAX_LENGTH));
        Self {
            id,
            method: request.method.to_string(),
            path,
            started: Instant::now(),
            status: CLIENT_LEFT,
            bytes_in: 0,
            bytes_out: 0,
            stages: None,
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let Self { id, method, path, status, bytes_in, bytes_out, .. } = self;
        // A field without a value is left out.
        let of_stage = |time: fn(&Stages) -> Duration| self.stages.as_ref().map(time).map(milliseconds);
        tracing::info!(
            target: "runtime::request",
            %id, %method, %path, status, bytes_in, bytes_out,
            ms = milliseconds(self.started.elapsed()),
            queue_ms = of_stage(|stages| stages.queue),
            decode_ms = of_stage(|stages| stages.decode),
            prepare_ms = of_stage(|stages| stages.prepare),
            network_ms = of_stage(|stages| stages.network),
            postprocess_ms = of_stage(|stages| stages.postprocess),
        );
    }
}

/// Rounded to microseconds.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// Whether an id of a client can stand in a log as it is.
fn is_sane(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=MAX_LENGTH).contains(&id.len()) && id.bytes().all(is_plain)
}

/// An id that no other request of this host is likely to have.
fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}-{:x}", now.as_millis(), std::process::id(), COUNT.fetch_add(1, Relaxed))
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};

    use hyper::Request;
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Keeps the fields of events.
    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Recorder {
        fn enabled(&self, metadata: &Metadata) -> bool {
            metadata.target() == "runtime::request"
        }

        fn new_span(&self, _: &Attributes) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event) {
            let mut line = Line::default();
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[derive(Default)]
    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0 += &format!("{field}={value:?} ");
        }
    }

    #[test]
    fn every_request_gets_one_line() {
        let recorder = Recorder::default();
        tracing::subscriber::with_default(recorder.clone(), || {
            let request = || {
                let request = Request::builder().method("POST").uri("/detect?classes=a").header("x-request-id", "7");
                RequestLog::new(&request.body(()).unwrap().into_parts().0)
            };
            // The client has left.
            drop(request());
            let mut log = request();
            (log.status, log.bytes_in, log.bytes_out) = (200, 10, 20);
            log.stages = Some(Stages { decode: Duration::from_micros(1500), ..Stages::default() });
        });
        let lines = recorder.0.lock().unwrap();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].starts_with("id=7 method=POST path=/detect status=499 bytes_in=0 bytes_out=0 ms="),
            "{}",
            lines[0]
        );
        assert!(
            lines[1].contains("status=200 bytes_in=10 bytes_out=20 ") && lines[1].contains("decode_ms=1.5 "),
            "{}",
            lines[1]
        );
    }

    fn id(header: &str) -> String {
        let request = Request::builder().uri("/detect").header("X-Request-Id", header).body(()).unwrap();
        RequestLog::new(&request.into_parts().0).id.clone()
    }

    #[test]
    fn ids_of_clients_are_kept_if_they_are_harmless() {
        assert_eq!(id("abc-1.2:3_4"), "abc-1.2:3_4");
        let long = "a".repeat(129);
        for bad in ["", "a b", "a\"b", "ä", long.as_str()] {
            assert_ne!(id(bad), bad);
        }
        assert_ne!(id(""), id(""));
    }
}
