//! Which connections are used again, and what happens when the application
//! closes one just then.

use super::*;

/// One call that is answered with `answer`; gives the connection.
async fn first(client: &Client, app: &App, answer: &str) -> Peer {
    let (outcome, peer) = play(client, request("GET", "/first"), &Notes::new(), async {
        let mut peer = app.accept().await;
        peer.request().await;
        peer.write(answer).await;
        peer
    })
    .await;
    assert!(matches!(outcome, Outcome::Response(_)), "{outcome:?}");
    peer
}

const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn several_calls_share_a_connection() {
    let app = App::new().await;
    let client = app.client();
    let mut peer = first(&client, &app, PLAIN).await;
    for (method, answer) in [
        ("POST", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        ("CHICKEN", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Oh\r\ncontent-length: 1\r\n\r\n!"),
        ("POST", PLAIN),
    ] {
        let notes = Notes::new();
        let (outcome, ()) = play(&client, request(method, "/a"), &notes, async {
            assert_eq!(peer.request().await.method, method);
            peer.write(answer).await;
        })
        .await;
        assert!(matches!(outcome, Outcome::Response(_)), "{outcome:?}");
        assert_eq!(notes.told().first(), Some(&"sent"));
        assert_eq!(client.idle("app"), 1);
    }
}

#[tokio::test]
async fn a_busy_connection_is_not_shared() {
    let app = App::new().await;
    let client = app.client();
    let (notes, other) = (Notes::new(), Notes::new());
    let (_, _held) = play(&client, request("GET", "/slow"), &notes, async {
        let mut slow = app.accept().await;
        slow.request().await;
        let (outcome, quick) = play(&client, request("GET", "/quick"), &other, async {
            let mut quick = app.accept().await;
            quick.request().await;
            quick.answer("quick").await;
            quick
        })
        .await;
        assert_eq!(text(&outcome), "quick");
        slow.answer("slow").await;
        (slow, quick)
    })
    .await;
    assert_eq!(client.idle("app"), 2);
}

#[tokio::test]
async fn a_connection_that_is_to_be_closed_is_not_kept() {
    let app = App::new().await;
    let client = app.client();
    for answer in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and more",
    ] {
        let mut peer = first(&client, &app, answer).await;
        assert_eq!(client.idle("app"), 0, "{answer}");
        soon(peer.closed()).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_used_again_within_pool_idle_only() {
    let app = App::new().await;
    let clock = HeldClock::new();
    let client = client_of(options(&app.url()), settings(), clock.clone());
    let mut peer = first(&client, &app, PLAIN).await;
    clock.advance(999);
    play(&client, request("GET", "/a"), &Notes::new(), async {
        peer.request().await;
        peer.answer("ok").await;
    })
    .await;
    clock.advance(1000);
    let mut other = first(&client, &app, PLAIN).await;
    soon(peer.closed()).await;
    play(&client, request("POST", "/a"), &Notes::new(), async {
        other.request().await;
        other.answer("ok").await;
    })
    .await;
}

#[tokio::test]
async fn nothing_is_kept_where_pool_idle_is_zero() {
    let app = App::new().await;
    let none = Settings { pool_idle: Duration::ZERO, ..settings() };
    let client = client_of(options(&app.url()), none, HeldClock::new());
    let mut peer = first(&client, &app, PLAIN).await;
    soon(peer.closed()).await;
}

#[tokio::test]
async fn what_nobody_takes_is_closed_and_the_task_that_does_it_ends() {
    let app = App::new().await;
    let (clock, tasks) = (HeldClock::new(), Tasks::default());
    let quick = Settings { pool_idle: Duration::from_millis(5), ..settings() };
    let target = Target::new(options(&app.url())).expect("a target");
    let client = Client::new(quick, vec![target], clock.clone(), tasks.clone(), Descriptors::default());
    for _ in 0..2 {
        let mut peer = first(&client, &app, PLAIN).await;
        assert_eq!(client.idle("app"), 1);
        assert_eq!(tasks.running().len(), 1);
        clock.advance(5);
        soon(peer.closed()).await;
        soon(async {
            while !tasks.running().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_keeps_no_more() {
    let app = App::new().await;
    let tasks = Tasks::default();
    let target = Target::new(options(&app.url())).expect("a target");
    let client =
        Client::new(settings(), vec![target], HeldClock::new(), tasks.clone(), Descriptors::default());
    let mut peer = first(&client, &app, PLAIN).await;
    soon(tasks.shut_down(Duration::from_secs(10))).await.expect("ends");
    soon(peer.closed()).await;
    let mut peer = first(&client, &app, PLAIN).await;
    soon(peer.closed()).await;
}

#[tokio::test]
async fn what_may_be_repeated_is_sent_once_more_newly_signed() {
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let app = App::new().await;
        let client = app.client();
        let mut idle = first(&client, &app, PLAIN).await;
        let notes = Notes::new();
        let (outcome, nonces) = play(&client, request(method, "/a"), &notes, async {
            let old = idle.request().await.verified().nonce;
            notes.until(&["sent"]).await;
            drop(idle);
            let mut fresh = app.accept().await;
            let new = fresh.request().await.verified().nonce;
            fresh.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            (old, new)
        })
        .await;
        assert!(matches!(outcome, Outcome::Response(Response { status: 200, .. })), "{method}: {outcome:?}");
        assert_ne!(nonces.0, nonces.1);
        assert_eq!(notes.told(), ["sent"], "told once, though written twice");
    }
}

#[tokio::test]
async fn it_is_repeated_only_once() {
    let app = App::new().await;
    let client = app.client();
    let mut idle = first(&client, &app, PLAIN).await;
    let (outcome, ()) = play(&client, request("GET", "/a"), &Notes::new(), async {
        idle.request().await;
        drop(idle);
        app.accept().await.request().await;
    })
    .await;
    lost(outcome);
}

#[tokio::test]
async fn what_must_not_be_repeated_ends_as_not_sent() {
    for method in ["POST", "PATCH", "CHICKEN"] {
        let app = App::new().await;
        let client = app.client();
        let mut idle = first(&client, &app, PLAIN).await;
        let (outcome, ()) = play(&client, request(method, "/a"), &Notes::new(), async {
            idle.request().await;
            drop(idle);
        })
        .await;
        let (reason, message) = not_sent(outcome);
        assert_eq!(reason, Reason::Connect);
        assert!(message.contains("idle connection"), "{message}");
    }
}

#[tokio::test]
async fn an_action_that_has_reported_is_not_sent_again() {
    for method in ["GET", "POST"] {
        let app = App::new().await;
        let client = app.client();
        let mut idle = first(&client, &app, PLAIN).await;
        let notes = Notes::new();
        let (outcome, ()) = play(&client, request(method, "/a"), &notes, async {
            idle.request().await;
            notes.report();
            drop(idle);
        })
        .await;
        lost(outcome);
    }
}

#[tokio::test]
async fn one_byte_of_a_response_forbids_the_repetition() {
    let app = App::new().await;
    let client = app.client();
    let mut idle = first(&client, &app, PLAIN).await;
    let (outcome, ()) = play(&client, request("GET", "/a"), &Notes::new(), async {
        idle.request().await;
        idle.write("H").await;
        drop(idle);
    })
    .await;
    lost(outcome);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_passed_over_by_any_method() {
    for goodbye in ["", "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"] {
        let app = App::new().await;
        let client = app.client();
        let mut idle = first(&client, &app, PLAIN).await;
        idle.write(goodbye).await;
        drop(idle);
        // One turn of the reactor, so that the client's socket knows.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let (outcome, ()) = play(&client, request("POST", "/a"), &Notes::new(), async {
            let mut fresh = app.accept().await;
            fresh.request().await;
            fresh.answer("fresh").await;
        })
        .await;
        assert_eq!(text(&outcome), "fresh");
    }
}

#[tokio::test]
async fn as_many_connections_wait_as_calls_were_under_way_at_once() {
    const CALLS: usize = 100;
    let app = App::new().await;
    let client = app.client();
    let mut peers: Vec<Peer> = Vec::new();
    for round in 0..2 {
        let notes: Vec<_> = (0..CALLS).map(|_| Notes::new()).collect();
        let mut calls: Vec<_> =
            notes.iter().map(|notes| client.call(request("GET", "/a"), notes.clone())).collect();
        for (place, (call, notes)) in calls.iter_mut().zip(&notes).enumerate() {
            soon(async {
                tokio::select! {
                    outcome = call => panic!("ended: {outcome:?}"),
                    () = async {
                        if round == 0 {
                            peers.push(app.accept().await);
                        }
                        // The one that became idle last is taken first.
                        let peer = if round == 0 { place } else { CALLS - 1 - place };
                        peers[peer].request().await;
                        notes.until(&["sent"]).await;
                    } => {}
                }
            })
            .await;
        }
        if round == 1 {
            calls.reverse();
        }
        for (call, peer) in calls.into_iter().zip(&mut peers) {
            peer.answer("ok").await;
            assert_eq!(text(&soon(call).await), "ok");
        }
        assert_eq!(client.idle("app"), CALLS);
    }
}
