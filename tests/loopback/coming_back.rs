//! Callers that come back: resumption and early data, from the command to nginx, over processes that share a ticket file.

use crate::harness::{Site, text};
use crate::origin::nginx;

#[test]
fn a_returning_caller_needs_no_round_trip_of_its_own() {
    let origin = nginx(&[]);
    let site = Site::start(origin.address());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tickets");
    let name = file.to_str().expect("UTF-8");
    let call = |early: &str, handshake: &str| {
        let called = site.call(&["--early", "--tickets", name, &site.url("pay/")]);
        called.answered(200);
        assert_eq!(text(&called.body), "hello from nginx\n");
        assert_eq!((called.word("early"), called.word("handshake")), (early, handshake));
    };
    call("no", "full");
    call("accepted", "early");
    call("accepted", "early");
    // A file that was put back, as by a backup: its newest ticket has been used, and the call does not notice.
    let kept = std::fs::read(&file).expect("it is there");
    call("accepted", "early");
    std::fs::write(&file, kept).expect("it is ours");
    call("refused", "full");
    call("accepted", "early");

    let called = site.call(&["--tickets", name, &site.url("pay/")]);
    called.answered(200);
    assert_eq!((called.word("early"), called.word("handshake")), ("no", "resumed"));
}
