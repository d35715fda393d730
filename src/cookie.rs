//! The session cookie: finding it among a request's cookies, and writing `Set-Cookie`.

use http::header::{CACHE_CONTROL, Entry, HeaderMap, HeaderValue, SET_COOKIE, VARY};

use crate::config::{CookieSettings, SameSite};

/// How many cookies of our name are looked at. A browser sends more than one only if somebody has
/// planted them.
pub(crate) const MAX_CANDIDATES: usize = 8;

/// The `Cookie` headers of a request, without copying their text.
#[derive(Debug, Clone)]
pub(crate) enum CookieHeaders {
    None,
    One(HeaderValue),
    Many(Vec<HeaderValue>),
}

impl CookieHeaders {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut all = headers.get_all(http::header::COOKIE).iter();
        match (all.next(), all.next()) {
            (None, _) => Self::None,
            (Some(only), None) => Self::One(only.clone()),
            (Some(first), Some(second)) => {
                Self::Many([first, second].into_iter().chain(all).cloned().collect())
            }
        }
    }

    fn as_slice(&self) -> &[HeaderValue] {
        match self {
            Self::None => &[],
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(many) => many,
        }
    }

    /// The values of the cookies whose name is exactly `name`, in the order sent, at most eight.
    ///
    /// Works on bytes: other cookies may hold anything. A name is compared as it stands, never
    /// decoded; nothing but space and tab is trimmed; a quote is a character like any other.
    pub(crate) fn candidates<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut headers = self.as_slice().iter();
        let mut rest: &[u8] = &[];
        let values = std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    rest = headers.next()?.as_bytes();
                }
                let end = memchr::memchr(b';', rest).unwrap_or(rest.len());
                let (pair, after) = rest.split_at(end);
                rest = after.get(1..).unwrap_or_default();
                if let Some(value) = value_of(name, pair) {
                    return Some(value);
                }
            }
        });
        values.take(MAX_CANDIDATES)
    }
}

/// What comes after `name` and `=`, if that is how a pair begins.
fn value_of<'a>(name: &[u8], pair: &'a [u8]) -> Option<&'a [u8]> {
    let after = trim_start(pair).strip_prefix(name)?;
    Some(trim(trim_start(after).strip_prefix(b"=")?))
}

fn trim_start(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    text
}

fn split(mut rest: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        match memchr::memchr(separator, rest) {
            Some(at) => {
                let (part, after) = rest.split_at(at);
                rest = &after[1..];
                Some(part)
            }
            None => {
                done = true;
                Some(rest)
            }
        }
    })
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The parts of a `Set-Cookie` header that never change.
#[derive(Debug, Clone)]
pub(crate) struct CookieTemplate {
    name: String,
    attributes: String,
}

/// The date in every removal: the beginning of 1970, as RFC 9110 writes dates.
const LONG_AGO: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

impl CookieTemplate {
    pub(crate) fn new(settings: &CookieSettings) -> Self {
        let mut attributes = format!("; Path={}", settings.path);
        if let Some(domain) = &settings.domain {
            attributes.push_str("; Domain=");
            attributes.push_str(domain);
        }
        if settings.secure {
            attributes.push_str("; Secure");
        }
        if settings.http_only {
            attributes.push_str("; HttpOnly");
        }
        attributes.push_str(match settings.same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::None => "; SameSite=None",
            SameSite::Strict => "; SameSite=Strict",
        });
        if settings.partitioned {
            attributes.push_str("; Partitioned");
        }
        Self {
            name: settings.name.clone(),
            attributes,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The header that gives the browser `value`, for `max_age` seconds or until it closes.
    pub(crate) fn set(&self, value: &[u8], max_age: Option<u64>) -> Option<HeaderValue> {
        let mut digits = itoa::Buffer::new();
        let age = max_age.map_or(["", ""], |seconds| ["; Max-Age=", digits.format(seconds)]);
        let parts = [
            self.name.as_bytes(),
            b"=",
            value,
            age[0].as_bytes(),
            age[1].as_bytes(),
            self.attributes.as_bytes(),
        ];
        // Of exact length: room to spare would cost one more allocation to become a header.
        let header = parts.concat();
        // Settings are ASCII without control characters, so this is always a header value.
        HeaderValue::from_maybe_shared(bytes::Bytes::from(header)).ok()
    }

    /// The header that makes the browser forget the cookie: every attribute again, or a browser
    /// refuses to touch a prefixed cookie.
    pub(crate) fn remove(&self) -> Option<HeaderValue> {
        let header = format!(
            "{}=; Max-Age=0; Expires={LONG_AGO}{}",
            self.name, self.attributes
        );
        HeaderValue::from_maybe_shared(bytes::Bytes::from(header)).ok()
    }

    /// Adds our `Set-Cookie`, in the place of any other of our name, and keeps shared caches from
    /// storing the response.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, set_cookie: HeaderValue) {
        let same_name = |value: &HeaderValue| {
            let pair = split(value.as_bytes(), b';').next().unwrap_or_default();
            memchr::memchr(b'=', pair).is_some_and(|at| trim(&pair[..at]) == self.name.as_bytes())
        };
        let before = match headers.entry(SET_COOKIE) {
            Entry::Vacant(none) => {
                none.insert(set_cookie);
                return make_private(headers);
            }
            Entry::Occupied(before) => before,
        };
        if before.iter().any(same_name) {
            let others: Vec<_> = headers
                .get_all(SET_COOKIE)
                .iter()
                .filter(|value| !same_name(value))
                .cloned()
                .collect();
            headers.remove(SET_COOKIE);
            for other in others {
                headers.append(SET_COOKIE, other);
            }
        }
        headers.append(SET_COOKIE, set_cookie);
        make_private(headers);
    }
}

/// Says that the response depends on the request's cookies, unless it says so already.
pub(crate) fn vary_on_cookie(headers: &mut HeaderMap) {
    let says_so = |value: &HeaderValue| {
        split(value.as_bytes(), b',')
            .map(trim)
            .any(|field| field == b"*" || field.eq_ignore_ascii_case(b"cookie"))
    };
    const COOKIE: HeaderValue = HeaderValue::from_static("Cookie");
    match headers.entry(VARY) {
        Entry::Vacant(none) => drop(none.insert(COOKIE)),
        Entry::Occupied(before) if before.iter().any(says_so) => {}
        Entry::Occupied(mut before) => before.append(COOKIE),
    }
}

/// Rewrites `Cache-Control` so that no shared cache keeps the response.
fn make_private(headers: &mut HeaderMap) {
    const PRIVATE: HeaderValue = HeaderValue::from_static("private");
    if let Entry::Vacant(none) = headers.entry(CACHE_CONTROL) {
        none.insert(PRIVATE);
        return;
    }
    let mut kept = Vec::new();
    for value in headers.get_all(CACHE_CONTROL) {
        for directive in split_unquoted(value.as_bytes()) {
            let directive = trim(directive);
            let name = trim(split(directive, b'=').next().unwrap_or_default());
            let dropped = [&b""[..], b"public", b"s-maxage", b"private"]
                .iter()
                .any(|dropped| name.eq_ignore_ascii_case(dropped));
            if !dropped {
                kept.extend_from_slice(directive);
                kept.extend_from_slice(b", ");
            }
        }
    }
    kept.extend_from_slice(b"private");
    let rewritten = HeaderValue::from_maybe_shared(bytes::Bytes::from(kept)).unwrap_or(PRIVATE);
    headers.insert(CACHE_CONTROL, rewritten);
}

/// The directives of a `Cache-Control` value; a comma in a quoted string does not end one.
fn split_unquoted(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let end = rest.iter().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' if !quoted => return true,
                _ => {}
            }
            false
        });
        let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after.get(1..).unwrap_or_default();
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[&[u8]]) -> CookieHeaders {
        let mut map = HeaderMap::new();
        for line in lines {
            map.append("cookie", HeaderValue::from_bytes(line).unwrap());
        }
        CookieHeaders::of(&map)
    }

    fn found(lines: &[&[u8]]) -> Vec<String> {
        headers(lines)
            .candidates(b"__Host-id")
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    #[test]
    fn a_cookie_is_found_by_its_exact_name() {
        assert_eq!(found(&[b"__Host-id=a"]), ["a"]);
        assert_eq!(found(&[b"x=1; __Host-id=a;y=2"]), ["a"]);
        assert_eq!(found(&[b" \t__Host-id \t=\t a \t"]), ["a"]);
        assert_eq!(found(&[b"__Host-id=a=b=="]), ["a=b=="]);
        for other in [
            &b"%5F%5FHost-id=evil"[..],
            b"__host-id=evil",
            b"__Host-id2=evil",
            b"_Host-id=evil",
            b"x__Host-id=evil",
            b"__Host-id",
            b"=__Host-id=evil",
            b"\xa0__Host-id=evil",
            b"\"__Host-id\"=evil",
            b"x=__Host-id=evil",
            b"",
        ] {
            assert!(found(&[other]).is_empty(), "{other:?}");
        }
    }

    #[test]
    fn neighbours_do_not_matter() {
        assert_eq!(found(&[b"theme=caf\xe9; __Host-id=good"]), ["good"]);
        assert_eq!(found(&[b"a=\"x; __Host-id=good; b=y\""]), ["good"]);
        assert_eq!(found(&[b";;=; ;__Host-id=good;;"]), ["good"]);
        assert_eq!(found(&[b"a=1", b"__Host-id=good", b"c=3"]), ["good"]);
        assert_eq!(
            found(&[b"__Host-id=one; __Host-id=two", b"__Host-id=three"]),
            ["one", "two", "three"]
        );
    }

    #[test]
    fn at_most_eight_candidates_are_looked_at() {
        let many = vec!["__Host-id=x"; 20].join("; ");
        assert_eq!(found(&[many.as_bytes()]).len(), MAX_CANDIDATES);
    }

    /// No time is taken: in a million pairs, whoever looks at each of them once is done at once, and
    /// whoever looks at all of them for each is not done today.
    #[test]
    fn a_million_pairs_are_read_in_one_pass() {
        let mut line = "__Host-ie=1; ".repeat(1_000_000).into_bytes();
        line.extend_from_slice(b"__Host-id=good");
        assert_eq!(found(&[&line]), ["good"]);
        let names_only = "__Host-id;".repeat(1_000_000);
        assert!(found(&[names_only.as_bytes()]).is_empty());
    }

    fn settings() -> CookieSettings {
        CookieSettings {
            name: "__Host-id".into(),
            path: "/".into(),
            domain: None,
            secure: true,
            http_only: true,
            same_site: SameSite::Lax,
            partitioned: true,
        }
    }

    #[test]
    fn a_removal_repeats_every_attribute() {
        let template = CookieTemplate::new(&settings());
        assert_eq!(
            template.set(b"v", Some(60)).unwrap(),
            "__Host-id=v; Max-Age=60; Path=/; Secure; HttpOnly; SameSite=Lax; Partitioned"
        );
        assert_eq!(
            template.set(b"v", None).unwrap(),
            "__Host-id=v; Path=/; Secure; HttpOnly; SameSite=Lax; Partitioned"
        );
        assert_eq!(
            template.remove().unwrap(),
            "__Host-id=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; \
             SameSite=Lax; Partitioned"
        );
    }

    #[test]
    fn another_cookie_of_our_name_gives_way() {
        let template = CookieTemplate::new(&settings());
        let mut map = HeaderMap::new();
        for other in ["a=1", "__Host-id=theirs; Path=/", "b=2"] {
            map.append(SET_COOKIE, HeaderValue::from_static(other));
        }
        template.apply(&mut map, HeaderValue::from_static("__Host-id=ours"));
        let all: Vec<_> = map.get_all(SET_COOKIE).iter().collect();
        assert_eq!(all, ["a=1", "b=2", "__Host-id=ours"]);
    }

    #[test]
    fn vary_is_said_once() {
        for (before, after) in [
            (&[][..], &["Cookie"][..]),
            (&["Accept"], &["Accept", "Cookie"]),
            (&["accept, cookie"], &["accept, cookie"]),
            (&["Accept", "COOKIE"], &["Accept", "COOKIE"]),
            (&["*"], &["*"]),
        ] {
            let mut map = HeaderMap::new();
            for value in before {
                map.append(VARY, HeaderValue::from_static(value));
            }
            vary_on_cookie(&mut map);
            assert_eq!(map.get_all(VARY).iter().collect::<Vec<_>>(), after);
        }
    }

    #[test]
    fn a_cached_response_becomes_private() {
        for (before, after) in [
            (&[][..], "private"),
            (&["public, max-age=60"], "max-age=60, private"),
            (&["Public", "S-MaxAge=9, max-age=60"], "max-age=60, private"),
            (&["no-store"], "no-store, private"),
            (&["private"], "private"),
            (
                &["private=\"a, public\", no-cache=\"x, s-maxage=1\""],
                "no-cache=\"x, s-maxage=1\", private",
            ),
            (&["", " , "], "private"),
        ] {
            let mut map = HeaderMap::new();
            for value in before {
                map.append(CACHE_CONTROL, HeaderValue::from_static(value));
            }
            make_private(&mut map);
            assert_eq!(
                map.get_all(CACHE_CONTROL).iter().collect::<Vec<_>>(),
                [after]
            );
        }
    }

    proptest! {
        #[test]
        fn the_parser_never_panics_and_never_confuses_names(
            pairs in prop::collection::vec(("[ -:<-~\u{80}-\u{ff}]{0,12}", prop::option::of("[ -:<-~\u{80}-\u{ff}]{0,12}")), 0..12),
            ours in prop::collection::vec((0usize..12, "[!-:<-~]{0,8}"), 0..3),
        ) {
            let mut pairs: Vec<Vec<u8>> = pairs.iter().filter(|(name, _)| name.trim_matches([' ', '\t']).split('=').next() != Some("id")).map(|(name, value)| {
                let mut pair: Vec<u8> = name.chars().map(|c| c as u8).collect();
                if let Some(value) = value {
                    pair.push(b'=');
                    pair.extend(value.chars().map(|c| c as u8));
                }
                pair
            }).filter(|pair| {
                // By the definition, not by the code: the part before the first '=', without blanks.
                let name: Vec<u8> = pair.iter().copied().take_while(|b| *b != b'=').collect();
                String::from_utf8_lossy(&name).trim_matches([' ', '\t']) != "id"
            }).collect();
            let mut expected = Vec::new();
            let mut at = 0;
            let mut ours = ours;
            ours.sort_by_key(|(position, _)| *position);
            for (position, value) in ours {
                at = position.max(at).min(pairs.len());
                pairs.insert(at, format!("id={value}").into_bytes());
                at += 1;
                expected.push(value);
            }
            let line = pairs.join(&b';');
            prop_assume!(HeaderValue::from_bytes(&line).is_ok());
            let headers = headers(&[&line]);
            let found: Vec<_> = headers.candidates(b"id").map(|v| String::from_utf8_lossy(v).into_owned()).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut map = HeaderMap::new();
                map.append("cookie", value.clone());
                map.append(CACHE_CONTROL, value.clone());
                map.append(VARY, value.clone());
                map.append(SET_COOKIE, value);
                let _ = CookieHeaders::of(&map).candidates(b"").count();
                CookieTemplate::new(&settings()).apply(&mut map, HeaderValue::from_static("a=b"));
                vary_on_cookie(&mut map);
            }
        }
    }
}
