//! The page at `/`, and `serve --check`.

use crate::client::Server;
use crate::fixture::{folder, program, run};

#[test]
fn the_page_loads_nothing_from_elsewhere_and_needs_no_token() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--token", "secret"]);
    let page = server.get("/");
    let text = page.text();
    let named: Vec<_> = [" src=\"", " href=\""].iter().flat_map(|name| text.split(name).skip(1)).collect();
    let mut paths: Vec<_> = named.iter().filter_map(|rest| rest.split('"').next()).collect();
    paths.retain(|path| !path.starts_with("data:"));
    paths.sort_unstable();
    assert_eq!(paths, ["page.css", "page.js"]);
    for (path, media_type) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/boxes.js", "text/javascript"),
        ("/client.js", "text/javascript"),
    ] {
        let response = server.get(path);
        assert_eq!(response.status, 200, "{path}");
        assert!(response.headers["content-type"].starts_with(media_type), "{:?}", response.headers);
        let policy = &response.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(response.headers["x-content-type-options"], "nosniff");
        // The name space of SVG is a name, and no address to load from.
        let text = response.text().replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("://") && !text.contains(" style=") && !text.contains("innerHTML"), "{path}");
    }
    assert_eq!(server.get("/model").status, 401);
    assert_eq!(server.post("/", &[], b"").status, 404);
}

#[test]
fn check_asks_whether_a_server_is_ready() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--token", "secret"]);
    let address = server.address.to_string();
    let check = || run(program(&folder).args(["serve", "--check", "--listen", &address]));
    let (code, _, error) = check();
    assert_eq!(code, 0, "{error}");
    server.kill("TERM");
    assert_eq!(server.wait().0, Some(0));
    let (code, _, error) = check();
    assert!(code == 1 && error.contains(&format!("no server answers at {address}")), "{error}");
}
