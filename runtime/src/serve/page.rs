//! The page at `/`: detection in a browser. Its files are part of the program.

/// A file of the page.
pub(super) struct File {
    /// Path of its URL.
    path: &'static str,
    pub(super) media_type: &'static str,
    pub(super) text: &'static str,
}

static FILES: [File; 5] = [
    File { path: "/", media_type: "text/html; charset=utf-8", text: include_str!("page/index.html") },
    File { path: "/page.css", media_type: "text/css; charset=utf-8", text: include_str!("page/page.css") },
    File { path: "/boxes.js", media_type: "text/javascript; charset=utf-8", text: include_str!("page/boxes.js") },
    File { path: "/client.js", media_type: "text/javascript; charset=utf-8", text: include_str!("page/client.js") },
    File { path: "/page.js", media_type: "text/javascript; charset=utf-8", text: include_str!("page/page.js") },
];

/// Headers of each file, beside its type. Browsers may load nothing but these files, whatever is in an image's or a class's
/// name, and ask for them again, as a newer program may have a newer page.
pub(super) const HEADERS: [(&str, &str); 4] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
];

/// The file at a path.
pub(super) fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}
