//! Access control by host name and origin, against DNS rebinding and cross-site requests.
//!
//! A browser sends requests for any page that it shows. Headers identify the page: `Host` is the name that the page used, which
//! is not the server's after DNS rebinding; `Origin` and `Sec-Fetch-Site` are the page's own.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use crate::{
    Options,
    error::{ApiError, Error},
};

/// The access rules of a server.
#[derive(Debug)]
pub struct Access {
    /// The host names that are allowed; `None` allows all.
    hosts: Option<Vec<String>>,
    /// Origins of other pages.
    origins: Vec<String>,
}

impl Access {
    /// # Errors
    /// Fails if an origin or a host of the options is not valid.
    pub fn new(options: &Options) -> Result<Self, Error> {
        options.cors_origins.iter().try_for_each(|origin| check_origin(origin))?;
        for host in &options.allowed_hosts {
            let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            if host.is_empty() || !is_name {
                return Err(Error::Host { host: host.clone() });
            }
        }
        // A page that reached a server on another address by rebinding would lack the token.
        let restricted =
            options.addr.ip().is_loopback() || options.token.is_none() || !options.allowed_hosts.is_empty();
        let hosts = restricted.then(|| options.allowed_hosts.clone());
        Ok(Self { hosts, origins: options.cors_origins.clone() })
    }

    /// # Errors
    /// 421 for a host name that is not the server's, 403 for a request of another site's page.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap, is_post: bool) -> Result<(), ApiError> {
        // Clients that send neither are no browsers.
        let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
        let host = host.or_else(|| uri.authority().map(|authority| authority.as_str().as_bytes()));
        if let Some(host) = host
            && !self.is_allowed(name(host))
        {
            let message = "this server is not known by that host name; see --allowed-host";
            return Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, message));
        }
        if is_post && !self.is_own_page(headers, host.unwrap_or_default()) {
            let message = "a page of another origin may not send images; see --cors-origin";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message));
        }
        Ok(())
    }

    fn is_allowed(&self, name: &[u8]) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        let text = String::from_utf8_lossy(name).to_ascii_lowercase();
        let text = text.strip_suffix('.').unwrap_or(&text);
        // No name, so nobody can make it point elsewhere.
        let is_address = text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        is_address
            || text == "localhost"
            || text.ends_with(".localhost")
            || hosts.iter().any(|host| host.eq_ignore_ascii_case(text))
    }

    /// Whether the request is of no page, of a page of this server, or of an allowed origin.
    fn is_own_page(&self, headers: &HeaderMap, host: &[u8]) -> bool {
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        // The browser's own word, which holds behind a proxy that changes `Host` too.
        if matches!(site, Some(b"same-origin" | b"none")) {
            return true;
        }
        let Some(origin) = headers.get(header::ORIGIN).map(HeaderValue::as_bytes) else { return site.is_none() };
        let is_same = origin.split(|&byte| byte == b'/').next_back().is_some_and(|own| own.eq_ignore_ascii_case(host));
        is_same || self.origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes().eq_ignore_ascii_case(origin))
    }
}

/// The host of an authority, without its port.
fn name(authority: &[u8]) -> &[u8] {
    let is_digits = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    match authority.iter().rposition(|&byte| byte == b':') {
        Some(colon) if is_digits(&authority[colon + 1..]) && !authority[..colon].ends_with(b":") => &authority[..colon],
        _ => authority,
    }
}

/// Checks an origin as browsers send it: a scheme and a host, perhaps a port; or `*`.
///
/// # Errors
/// [`Error::Origin`] for anything else.
pub fn check_origin(origin: &str) -> Result<(), Error> {
    let is_origin = || {
        let uri: Uri = origin.parse().ok()?;
        let authority = uri.authority()?;
        let has_more = origin.len() != uri.scheme_str()?.len() + "://".len() + authority.as_str().len();
        (!has_more && !authority.as_str().contains('@') && !authority.host().is_empty()).then_some(())
    };
    match origin == "*" || is_origin().is_some() {
        true => Ok(()),
        false => Err(Error::Origin { origin: origin.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(change: impl FnOnce(&mut Options)) -> Access {
        let mut options = Options::default();
        change(&mut options);
        Access::new(&options).unwrap()
    }

    fn status(access: &Access, pairs: &[(&'static str, &str)], is_post: bool) -> Option<u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        access.check(&Uri::from_static("/v1/classify"), &headers, is_post).err().map(|error| error.status.as_u16())
    }

    #[test]
    fn a_loopback_server_answers_its_own_names_only() {
        let own = access(|_| ());
        for host in
            ["localhost", "LOCALHOST:8080", "localhost.", "app.localhost:1", "127.0.0.1:8080", "[::1]:8080", "[::1]"]
        {
            assert_eq!(status(&own, &[("host", host)], false), None, "{host}");
        }
        for host in
            ["example.org", "example.org:8080", "127.0.0.1.example.org", "localhost.example.org", "", "localhost@x"]
        {
            assert_eq!(status(&own, &[("host", host)], false), Some(421), "{host}");
        }
        assert_eq!(status(&own, &[], false), None, "no browser");
        let named = access(|options| options.allowed_hosts = vec!["photos.Example.org".into()]);
        assert_eq!(status(&named, &[("host", "photos.example.org:80")], false), None);
        assert_eq!(status(&named, &[("host", "example.org")], false), Some(421));
    }

    #[test]
    fn a_token_makes_every_name_safe_on_other_addresses() {
        let public = |token: Option<&str>| {
            access(|options| {
                options.addr = ([0, 0, 0, 0], 80).into();
                options.token = token.map(String::from);
            })
        };
        assert_eq!(status(&public(Some("x")), &[("host", "example.org")], false), None);
        assert_eq!(status(&public(None), &[("host", "example.org")], false), Some(421));
        assert_eq!(status(&public(None), &[("host", "192.0.2.7")], false), None);
    }

    #[test]
    fn pages_of_other_origins_may_not_post() {
        let own = access(|_| ());
        let host = ("host", "localhost:8080");
        for allowed in [
            &[host][..],
            &[host, ("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")],
            &[host, ("sec-fetch-site", "none")],
            &[host, ("origin", "https://proxy.example.org"), ("sec-fetch-site", "same-origin")],
        ] {
            assert_eq!(status(&own, allowed, true), None, "{allowed:?}");
        }
        for refused in [
            &[host, ("origin", "https://example.org")][..],
            &[host, ("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")],
            &[host, ("origin", "null")],
            &[host, ("sec-fetch-site", "cross-site")],
        ] {
            assert_eq!(status(&own, refused, true), Some(403), "{refused:?}");
            assert_eq!(status(&own, refused, false), None, "reading is what CORS decides");
        }
        let open = access(|options| options.cors_origins = vec!["https://example.org".into()]);
        assert_eq!(
            status(&open, &[host, ("origin", "https://example.org"), ("sec-fetch-site", "cross-site")], true),
            None
        );
        assert_eq!(status(&open, &[host, ("origin", "https://example.com")], true), Some(403));
        let any = access(|options| options.cors_origins = vec!["*".into()]);
        assert_eq!(status(&any, &[host, ("origin", "null")], true), None);
    }

    #[test]
    fn origins_and_hosts_that_nobody_sends_are_refused() {
        for origin in ["https://example.org", "http://localhost:3000", "*"] {
            check_origin(origin).unwrap();
        }
        for origin in [
            "example.org",
            "https://",
            "https://example.org/",
            "https://example.org/a",
            "https://u@example.org",
            "",
            "a b",
        ] {
            let error = check_origin(origin).unwrap_err().to_string();
            assert!(error.contains(&format!("`{origin}`")), "{error}");
        }
        for host in ["", "https://example.org", "example.org:80", "a/b", "*"] {
            let options = Options { allowed_hosts: vec![host.into()], ..Options::default() };
            assert!(matches!(Access::new(&options), Err(Error::Host { .. })), "{host}");
        }
    }
}
