//! Codes of the edge's own answers (contract 4.4): what each means and what to do about it.
//!
//! Never a code that the edge does not have: its tests compare this with what it answers.

/// One code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeCode {
    /// The code, as the page and the log carry it.
    pub code: &'static str,
    /// The status of the answer.
    pub status: u16,
    /// What happened.
    pub meaning: &'static str,
    /// What to do about it.
    pub advice: &'static str,
}

/// Every code there is, in order.
pub const EDGE_CODES: [EdgeCode; 28] = [
    EdgeCode {
        code: "PA01",
        status: 502,
        meaning: "The app answered with `fly-replay`, but the request's body is larger than 1 MiB, or too many bodies were kept at once, so it cannot be sent again.",
        advice: "Answer such requests where they arrive, or let the client upload straight to the machine with `fly-force-instance-id`.",
    },
    EdgeCode {
        code: "PA02",
        status: 508,
        meaning: "The request was replayed more than five times, or a replay that had come back was to be replayed again.",
        advice: "Look for two machines that send requests to each other: the field `fly-replay-src` tells who sent one, `fly-replay-failed` that nobody else took it.",
    },
    EdgeCode {
        code: "PA03",
        status: 502,
        meaning: "What the app said in `fly-replay` or in a body of `application/vnd.fly.replay+json` is unclear: a field has no value, is there twice or has a value that is not allowed.",
        advice: "The edge's log has the reason. Compare with the fields: region, instance, prefer_instance, app, state, elsewhere, timeout, fallback; in a body also transform and cache.",
    },
    EdgeCode {
        code: "PA04",
        status: 502,
        meaning: "The app sent a request on to an app that does not exist, or that is of another organization or network whose organization does not let such requests in.",
        advice: "`perch apps list` shows the apps there are. Both have to be in the same organization and network, unless the organization of the app that gets the request says otherwise: `PUT /v1/orgs/<slug>/replay_sources` with `allow_all_cross_network_replays` or `allowed_replay_source_org_slugs`.",
    },
    EdgeCode {
        code: "PA05",
        status: 502,
        meaning: "The app took a switch of protocols (a WebSocket) and asked for a replay in the same answer. It has to leave the switch to the machine that gets the request.",
        advice: "Answer with `fly-replay` before the WebSocket is accepted, with a status other than 101.",
    },
    EdgeCode {
        code: "PA06",
        status: 504,
        meaning: "No machine took a replay within the `timeout` that the app set, and it named no `fallback`.",
        advice: "Give more time, or say `fallback=force_self` and answer yourself.",
    },
    EdgeCode {
        code: "PC01",
        status: 502,
        meaning: "A machine runs, and nothing listens where its service says.",
        advice: "The program has to listen on 0.0.0.0 (not 127.0.0.1) and on the service's `internal_port`. `perch status` shows its checks, `perch logs` what it prints.",
    },
    EdgeCode {
        code: "PC02",
        status: 502,
        meaning: "The machine refused or closed the connection before it answered. The request was sent once and is not sent again.",
        advice: "`perch logs` shows whether the program fell over; one that closes idle connections early shows this too.",
    },
    EdgeCode {
        code: "PC03",
        status: 502,
        meaning: "The app's machine is on another server, whose edge could not be reached, or was lost before the answer began. What had been sent was not sent again.",
        advice: "`perch machine list` shows in which region it is. Both servers have to be up, and `edge_peers` of the other has to be open to this one.",
    },
    EdgeCode {
        code: "PE01",
        status: 404,
        meaning: "No app has this host name.",
        advice: "Check the spelling. An app is at `NAME.DOMAIN`, and at another name after `perch certs add HOSTNAME`.",
    },
    EdgeCode {
        code: "PE02",
        status: 408,
        meaning: "The client took longer for the head of its request than `headers_read_timeout` of the port allows. Under TLS it is cut off then (over HTTP/2 its connection ends); in the clear it is told when the head is whole, for only that says which app it is for.",
        advice: "Raise `http_options.headers_read_timeout` if honest clients are that slow.",
    },
    EdgeCode {
        code: "PE03",
        status: 400,
        meaning: "The request cannot be understood without doubt: its framing, its host or a field of it could be read in two ways.",
        advice: "This is the client's fault. A proxy before this server that changes requests may be too.",
    },
    EdgeCode {
        code: "PE04",
        status: 431,
        meaning: "The head of the request is larger than 64 KiB or has more than 128 fields.",
        advice: "Most often too many cookies: delete some, or keep less in them.",
    },
    EdgeCode {
        code: "PM01",
        status: 502,
        meaning: "A machine was started for the request, twice, and its program ended each time before it could answer.",
        advice: "`perch logs` shows the program's last words; a machine without enough memory ends so too.",
    },
    EdgeCode {
        code: "PM07",
        status: 503,
        meaning: "A machine was to be started for the request, and its host did not start it.",
        advice: "`perch machine status ID` has the reason: no room on the server, an image that cannot be fetched.",
    },
    EdgeCode {
        code: "PM08",
        status: 503,
        meaning: "No machine of the app runs, and none may be started by a request.",
        advice: "`perch machine start ID`, or `auto_start_machines = true` in fly.toml.",
    },
    EdgeCode {
        code: "PR01",
        status: 503,
        meaning: "The app has no machine that serves this port and can be used.",
        advice: "The port has to be in `ports` of the service, and `perch deploy` makes the machine. `perch machine uncordon ID` gives one that was cordoned to requests again.",
    },
    EdgeCode {
        code: "PR02",
        status: 404,
        meaning: "The request names a machine in `fly-force-instance-id` that the app does not have.",
        advice: "`perch machine list` shows their ids.",
    },
    EdgeCode {
        code: "PR03",
        status: 503,
        meaning: "Every machine is at its `hard_limit`, and no place became free while the request waited, or too many waited already.",
        advice: "Raise `concurrency.hard_limit` if the machines can bear it, or add machines.",
    },
    EdgeCode {
        code: "PR04",
        status: 503,
        meaning: "Too many requests wait for machines to start: 1,024 of one app, or 10,000 of all on this server.",
        advice: "Try again in a moment. If it lasts, `perch status` shows how long the app takes to wake; or the server is too small for what wakes at once.",
    },
    EdgeCode {
        code: "PR05",
        status: 503,
        meaning: "A file that `statics` names is in the app's image, and the host could not read it, or too many of its files are being sent.",
        advice: "Try again in a moment. If it lasts, `perch doctor` on the server tells what is wrong with it.",
    },
    EdgeCode {
        code: "PR06",
        status: 404,
        meaning: "The request asks with `fly-force-region` for regions in which the app has no machine.",
        advice: "`perch machine list` shows where they are; `fly-prefer-region` takes another region then.",
    },
    EdgeCode {
        code: "PR07",
        status: 503,
        meaning: "The app has as many connections of clients at once as one app may have on a server.",
        advice: "Look for a client that opens connections and does not close them. Requests share connections over HTTP/2 and with keep-alive.",
    },
    EdgeCode {
        code: "PT01",
        status: 421,
        meaning: "The connection under TLS was made for the name of one app, and the request names another.",
        advice: "The client has to open a connection of its own for each name. A proxy before this server that sends requests of many apps over one connection does not.",
    },
    EdgeCode {
        code: "PU02",
        status: 504,
        meaning: "The app did not begin its answer in time: in 120 seconds, or in `idle_timeout` of the port, counted from the last byte of the request.",
        advice: "`perch logs` shows what it was doing. Long work belongs into the background.",
    },
    EdgeCode {
        code: "PU03",
        status: 502,
        meaning: "The app's answer cannot be understood without doubt: it is no HTTP, has two lengths, or switches to a protocol that nobody asked for.",
        advice: "Look at what the program sends; with `h2_backend` it has to speak HTTP/2 without TLS.",
    },
    EdgeCode {
        code: "PU05",
        status: 408,
        meaning: "The client sent nothing of its request's body for 30 seconds, or for `idle_timeout` of the port, while the app waited for it; or less than 64 bytes a second in the mean.",
        advice: "This is the client's fault, or its network's. Raise `http_options.idle_timeout` if honest clients pause for longer; with `h2_backend` only the wait for the answer ends.",
    },
    EdgeCode {
        code: "PU06",
        status: 413,
        meaning: "The body of the request is larger than 64 GiB.",
        advice: "Send it in parts.",
    },
];

/// Returns what is known of a code.
#[must_use]
pub fn edge_code(code: &str) -> Option<&'static EdgeCode> {
    EDGE_CODES.iter().find(|one| one.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_each_has_its_part_of_the_page() {
        assert!(EDGE_CODES.is_sorted_by(|one, next| one.code < next.code));
        let page = include_str!("../../../docs/edge-codes.md");
        for one in &EDGE_CODES {
            let part = format!("## {} (HTTP {})\n\n{}\n\n", one.code, one.status, one.meaning);
            assert!(page.contains(&part) && page.contains(one.advice), "{}", one.code);
        }
        assert_eq!(page.matches("\n## ").count(), EDGE_CODES.len());
    }

    #[test]
    fn a_code_is_found_by_its_name() {
        assert_eq!(edge_code("PC01").map(|one| one.status), Some(502));
        assert_eq!(edge_code("PX01"), None);
    }
}
