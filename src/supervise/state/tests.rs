//! The whole matrix of stages and events, held against `matrix.txt`, and what comes of several events in a row, all
//! with made-up clocks.

use super::*;

/// `ttl` 15 s, `grace` 5 s, the last sign at 100: SIGTERM at 109, SIGKILL at 114.
const POLICY: (f64, f64) = (15.0, 5.0);
const HEARD: f64 = 100.0;
const NOW: f64 = 103.0;

fn at(seconds: f64) -> Moment {
    Moment::after_first(time(seconds))
}

fn time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn policy(ttl: f64, grace: f64) -> Policy {
    Policy {
        terms: (ttl > 0.0).then(|| Terms::new(time(ttl), time(grace)).unwrap()),
        grace: time(grace),
        kill_on_loss: true,
        pooled: false,
        rename: false,
        has_terminal: true,
        others: 0,
        hold_until: None,
    }
}

/// Where the server stands that holds the lock, and where one does that was promoted in its place.
const HELD: History = History {
    cluster: 7,
    timeline: 4,
};
const NEXT: History = History {
    cluster: 7,
    timeline: 5,
};

/// That server, which lost its sessions so long ago.
fn past(lost: f64) -> Past {
    Past {
        lost: time(lost),
        promoted: None,
        history: Some(HELD),
    }
}

/// A server that stands there, was promoted so long ago and has never lost a session.
fn promoted(ago: f64, history: Option<History>) -> Past {
    Past {
        lost: time(1e6),
        promoted: Some(time(ago)),
        history,
    }
}

/// A run that has learnt where its server stands, and knows of two other hosts.
fn of_three() -> State {
    let policy = Policy {
        others: 2,
        ..policy(15.0, 5.0)
    };
    let mut state = State::new(policy, at(HEARD), at(HEARD));
    assert_eq!(state.next_deadline(at(HEARD)), Some(at(101.0)));
    state.on(Event::Tick, at(101.0));
    assert_eq!(state.asked(), Some(Question::History));
    state.on(Event::Answered(Answer::History(Some(HELD))), at(101.0));
    state
}

/// A run in which it need not be asked where the server stands.
fn state(policy: Policy) -> State {
    State {
        learn_at: None,
        ..State::new(policy, at(HEARD), at(HEARD))
    }
}

fn lost(loss: Loss) -> Event {
    Event::SessionLost(loss, "why".to_owned())
}

fn not_connected(barrier: Barrier) -> Event {
    Event::NotConnected(barrier, "why not".to_owned())
}

/// A run whose session has just been lost so, and that is on the way back.
fn lost_so(policy: Policy, loss: Loss, now: f64) -> State {
    let mut state = state(policy);
    state.on(lost(loss), at(now));
    state
}

fn retake(retake: Retake) -> Event {
    Event::Answered(Answer::Retake(retake))
}

/// Every stage, with a connection as it has in it.
fn stages() -> [(&'static str, Stage); 8] {
    [
        ("running", Stage::Running),
        ("frozen", Stage::Frozen),
        ("terminating", Stage::Terminating(at(106.0))),
        ("killed", Stage::Killed(at(102.9))),
        ("suspending", Stage::Suspending(at(103.5))),
        ("suspended", Stage::Suspended),
        ("resuming", Stage::Resuming(at(110.0))),
        ("holding", Stage::Holding(at(120.0))),
    ]
}

/// Every event, with the connection that it comes on.
fn events() -> Vec<(&'static str, Link, Event)> {
    let asked = |question| Link::Asked(question, at(NOW - 0.1));
    vec![
        ("nothing but time", Link::Idle, Event::Tick),
        ("session closed without a word", Link::Idle, lost(Loss::Cut)),
        ("session ended", Link::Idle, lost(Loss::One)),
        ("all sessions ended", Link::Idle, lost(Loss::All)),
        (
            "not connected: not serving",
            Link::Connecting,
            not_connected(Barrier::NotServing),
        ),
        (
            "not connected: starting",
            Link::Connecting,
            not_connected(Barrier::Starting),
        ),
        (
            "not connected: down",
            Link::Connecting,
            not_connected(Barrier::Down),
        ),
        (
            "not connected: unreachable",
            Link::Connecting,
            not_connected(Barrier::Unreachable),
        ),
        (
            "not connected: denied",
            Link::Connecting,
            not_connected(Barrier::Denied),
        ),
        (
            "not connected: refused",
            Link::Connecting,
            not_connected(Barrier::Refused),
        ),
        (
            "not connected: unguarded",
            Link::Connecting,
            not_connected(Barrier::Unguarded),
        ),
        (
            "not connected: silence",
            Link::Connecting,
            not_connected(Barrier::Silence),
        ),
        ("connected", Link::Connecting, Event::Connected),
        ("connected, given up before", Link::Gone, Event::Connected),
        (
            "answer to a beat",
            asked(Question::Beat),
            Event::Answered(Answer::Alive),
        ),
        (
            "where the server stands",
            asked(Question::History),
            Event::Answered(Answer::History(Some(HELD))),
        ),
        (
            "lease lifted",
            asked(Question::Lift),
            Event::Answered(Answer::Alive),
        ),
        (
            "answer to a beat, not confirmed",
            asked(Question::Beat),
            Event::Answered(Answer::Unconfirmed("alone".to_owned())),
        ),
        (
            "retaken, not confirmed",
            asked(Question::Retake),
            Event::Answered(Answer::Unconfirmed("alone".to_owned())),
        ),
        (
            "still held, not confirmed",
            asked(Question::Check),
            Event::Answered(Answer::Unconfirmed("alone".to_owned())),
        ),
        (
            "retaken after a restart",
            asked(Question::Retake),
            retake(Retake::Held(past(1.0))),
        ),
        (
            "retaken without a restart",
            asked(Question::Retake),
            retake(Retake::Held(past(1e6))),
        ),
        (
            "retaken, long under way",
            asked(Question::Retake),
            retake(Retake::Held(past(2.95))),
        ),
        (
            "retaken after a promotion",
            asked(Question::Retake),
            retake(Retake::Held(promoted(1.0, Some(NEXT)))),
        ),
        (
            "retaken on a server that was promoted before",
            asked(Question::Retake),
            retake(Retake::Held(promoted(9.0, Some(NEXT)))),
        ),
        (
            "retaken after a promotion, long under way",
            asked(Question::Retake),
            retake(Retake::Held(promoted(2.95, Some(NEXT)))),
        ),
        (
            "retaken on a server of another cluster",
            asked(Question::Retake),
            retake(Retake::Held(promoted(
                1.0,
                Some(History { cluster: 8, ..NEXT }),
            ))),
        ),
        (
            "not retaken: held on a promoted server",
            asked(Question::Retake),
            retake(Retake::Busy(promoted(1.0, Some(NEXT)))),
        ),
        (
            "not retaken: standby",
            asked(Question::Retake),
            retake(Retake::Standby),
        ),
        (
            "not retaken: held",
            asked(Question::Retake),
            retake(Retake::Busy(past(1e6))),
        ),
        (
            "not retaken: not ready",
            asked(Question::Retake),
            retake(Retake::NotReady),
        ),
        (
            "restarted after all",
            asked(Question::Past),
            Event::Answered(Answer::Past(past(1.0))),
        ),
        (
            "promoted after all",
            asked(Question::Past),
            Event::Answered(Answer::Past(promoted(1.0, Some(NEXT)))),
        ),
        (
            "promoted perhaps",
            asked(Question::Past),
            Event::Answered(Answer::Past(promoted(2.95, Some(NEXT)))),
        ),
        (
            "not restarted",
            asked(Question::Past),
            Event::Answered(Answer::Past(past(1e6))),
        ),
        (
            "held by own old backend",
            asked(Question::Holder),
            Event::Answered(Answer::Holder(Some(time(60.0)))),
        ),
        (
            "held by a newer backend",
            asked(Question::Holder),
            Event::Answered(Answer::Holder(Some(time(1.0)))),
        ),
        (
            "held by somebody else",
            asked(Question::Holder),
            Event::Answered(Answer::Holder(None)),
        ),
        (
            "evicted and retaken",
            asked(Question::Evict),
            retake(Retake::Held(past(1e6))),
        ),
        (
            "still held",
            asked(Question::Check),
            Event::Answered(Answer::Check(true)),
        ),
        (
            "no longer held",
            asked(Question::Check),
            Event::Answered(Answer::Check(false)),
        ),
        (
            "command stopped",
            Link::Idle,
            Event::CommandStopped(Signal::TSTP, false),
        ),
        ("command continued", Link::Idle, Event::CommandContinued),
        (
            "command ended",
            Link::Idle,
            Event::CommandEnded(Change::Exited(0), false),
        ),
        (
            "command ended, its lock to be kept",
            Link::Idle,
            Event::CommandEnded(Change::Exited(0), true),
        ),
        ("its group is gone", Link::Idle, Event::GroupGone),
        ("the guardian has fired", Link::Idle, Event::GuardianFired),
        ("SIGTERM", Link::Idle, Event::Signal(Signal::TERM)),
        ("SIGTSTP", Link::Idle, Event::Signal(Signal::TSTP)),
        ("SIGCONT", Link::Idle, Event::Signal(Signal::CONT)),
        ("pglock continued", Link::Idle, Event::Woken(true)),
        (
            "pglock continued, no session",
            Link::Down(at(NOW)),
            Event::Woken(true),
        ),
    ]
}

fn shown(effect: &Effect) -> String {
    match effect {
        Effect::Signal(signal) => signal.to_string(),
        Effect::SignalAwake(signal) => format!("{signal}+CONT"),
        Effect::Continue => "continue".to_owned(),
        Effect::Kill => "kill".to_owned(),
        Effect::Ask(question) => format!("ask {question:?}").to_lowercase(),
        Effect::Connect(..) => "connect".to_owned(),
        Effect::Disconnect => "disconnect".to_owned(),
        Effect::Guard(Some(until)) => format!("guard until {}", until.since_first().as_secs_f64()),
        Effect::Guard(None) => "guard for ever".to_owned(),
        Effect::WakeGuardian => "wake guardian".to_owned(),
        Effect::Suspend => "stop pglock".to_owned(),
        Effect::Hold => "hold".to_owned(),
        Effect::Say(Line::ConnectionLost(..)) => "say lost".to_owned(),
        Effect::Say(line) => format!("say {line:?}")
            .split(['(', ' '])
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
            .to_lowercase(),
    }
}

fn name(stage: Stage) -> String {
    match stage {
        Stage::Running => "running".to_owned(),
        Stage::Frozen => "frozen".to_owned(),
        Stage::Terminating(at) => format!("terminating until {}", at.since_first().as_secs_f64()),
        Stage::Killed(_) => "killed".to_owned(),
        Stage::Suspending(_) => "suspending".to_owned(),
        Stage::Suspended => "suspended".to_owned(),
        Stage::Resuming(at) => format!("resuming until {}", at.since_first().as_secs_f64()),
        Stage::Holding(at) => format!("holding until {}", at.since_first().as_secs_f64()),
    }
}

#[test]
fn each_pair_of_stage_and_event_is_decided_as_the_table_says() {
    let mut table = format!(
        "What comes of each event in each stage. The ttl is {} s, the grace {} s; the last sign of the server was given at \
         {HEARD}, it is {NOW}. The lock is kept until 120.\n",
        POLICY.0, POLICY.1
    );
    for (event_name, link, event) in events() {
        table.push_str(&format!("\n{event_name}\n"));
        for (stage_name, stage) in stages() {
            let mut state = state(Policy {
                hold_until: Some(at(120.0)),
                ..policy(POLICY.0, POLICY.1)
            });
            state.stage = stage;
            state.link = link;
            if stage_name == "holding" {
                state.ended = Some(Change::Exited(0));
            }
            // A session that is there has answered since; where there is none it was lost a moment ago.
            let lost_at = if link == Link::Idle { HEARD } else { NOW - 0.5 };
            state.lost_at = at(lost_at);
            state.heard = at(HEARD);
            state.history = Some(HELD);
            state.was_told = true;
            let effects = state.on(event.clone(), at(NOW));
            let effects: Vec<_> = effects.iter().map(shown).collect();
            let after = match state.stage {
                same if same == stage => String::new(),
                other => format!(" -> {}", name(other)),
            };
            let over = if state.is_over(at(NOW)) {
                " -> over"
            } else {
                ""
            };
            let line = format!("    {stage_name:12} {}{after}{over}", effects.join(", "));
            table.push_str(line.trim_end());
            table.push('\n');
        }
    }
    let expected = include_str!("../matrix.txt");
    assert!(table == expected, "the table is now:\n{table}");
}

#[test]
fn one_session_that_was_ended_is_not_all_of_them() {
    let mut state = state(policy(15.0, 5.0));
    state.on(lost(Loss::One), at(103.0));
    assert_eq!(state.stage, Stage::Frozen);
    // Something is in the way: that it is down is not known.
    for moment in [103.0, 103.1, 104.0, 105.0] {
        state.on(not_connected(Barrier::Unreachable), at(moment));
        assert_eq!(state.stage, Stage::Frozen);
        state.on(Event::Tick, at(moment + 0.1));
    }
    state.on(Event::Tick, at(113.9));
    assert!(matches!(state.stage, Stage::Killed(_)));
}

#[test]
fn in_a_smart_shutdown_the_sessions_of_others_live_on() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::One, 103.0);
    for moment in [103.0, 103.1, 104.0, 106.0] {
        state.on(not_connected(Barrier::NotServing), at(moment));
        assert_eq!(state.stage, Stage::Frozen);
        state.on(Event::Tick, at(moment + 0.1));
    }
    // Long after: who came next may have been ended only now.
    state.on(not_connected(Barrier::Unreachable), at(106.5));
    assert_eq!(state.stage, Stage::Frozen);
}

#[test]
fn a_server_that_goes_down_and_is_down_lets_the_command_run_to_its_deadline() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::One, 103.0);
    state.on(not_connected(Barrier::NotServing), at(103.0));
    state.on(Event::Tick, at(103.1));
    let effects = state.on(not_connected(Barrier::Unreachable), at(103.2));
    assert!(effects.contains(&Effect::Signal(Signal::CONT)));
    assert_eq!(state.stage, Stage::Running);
    let effects = state.on(Event::Tick, at(109.0));
    assert!(effects.contains(&Effect::SignalAwake(Signal::TERM)));
    assert_eq!(state.stage, Stage::Terminating(at(114.0)));
}

#[test]
fn a_server_that_is_there_after_it_was_seen_down_has_the_command_stopped_again() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::One, 103.0);
    state.on(not_connected(Barrier::NotServing), at(103.0));
    state.on(Event::Tick, at(103.1));
    state.on(not_connected(Barrier::Unreachable), at(103.2));
    assert_eq!(state.stage, Stage::Running);
    // Something on the way has refused; in a smart shutdown somebody may have the lock.
    state.on(Event::Tick, at(103.3));
    let effects = state.on(not_connected(Barrier::NotServing), at(103.4));
    assert_eq!(effects, [Effect::Signal(Signal::STOP)]);
    assert_eq!(state.stage, Stage::Frozen);
    // And what is heard counts no more.
    for (barrier, moment) in [
        (Barrier::Unreachable, 103.6),
        (Barrier::NotServing, 103.8),
        (Barrier::Unreachable, 104.0),
        (Barrier::Down, 104.2),
        (Barrier::Starting, 104.4),
    ] {
        state.on(Event::Tick, at(moment - 0.1));
        state.on(not_connected(barrier), at(moment));
        assert_eq!(state.stage, Stage::Frozen, "{barrier:?}");
    }
    // A restart is what it always is.
    state.on(Event::Tick, at(104.6));
    state.on(Event::Connected, at(104.7));
    let effects = state.on(retake(Retake::Held(past(0.3))), at(104.8));
    assert!(effects.contains(&Effect::Signal(Signal::CONT)));
    assert_eq!(state.stage, Stage::Running);
}

#[test]
fn a_restart_after_the_server_has_served_again_is_no_excuse() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::One, 103.0);
    state.on(Event::Connected, at(103.0));
    // It let us in, so the session before was ended alone; then it crashes.
    state.on(lost(Loss::All), at(103.1));
    assert_eq!(state.stage, Stage::Frozen);
    state.on(not_connected(Barrier::Starting), at(103.2));
    assert_eq!(state.stage, Stage::Frozen);
    state.on(Event::Tick, at(103.4));
    state.on(Event::Connected, at(103.5));
    // Who had the lock meanwhile runs on by its lease.
    let effects = state.on(retake(Retake::Held(past(0.2))), at(103.6));
    assert!(effects.contains(&Effect::Kill), "{effects:?}");
}

#[test]
fn a_session_that_ends_in_the_grace_ends_the_command() {
    let mut state = lost_so(policy(60.0, 30.0), Loss::One, 103.0);
    state.on(Event::Connected, at(103.0));
    state.on(retake(Retake::Held(past(1e6))), at(103.1));
    assert_eq!(state.stage, Stage::Terminating(at(133.1)));
    let effects = state.on(lost(Loss::One), at(105.0));
    assert!(effects.contains(&Effect::Kill));
}

#[test]
fn who_is_killed_keeps_the_session_until_the_group_is_gone_or_the_lease_over() {
    let mut state = state(policy(15.0, 5.0));
    let effects = state.on(Event::Tick, at(109.0));
    assert!(!effects.contains(&Effect::Disconnect));
    let effects = state.on(Event::Tick, at(114.0));
    assert!(effects.contains(&Effect::Kill) && !effects.contains(&Effect::Disconnect));
    state.on(
        Event::CommandEnded(Change::Killed(Signal::KILL), true),
        at(114.1),
    );
    assert!(!state.is_over(at(114.1)));
    assert!(state.is_over(at(129.1)));
    state.on(Event::GroupGone, at(114.2));
    assert!(state.is_over(at(114.2)));
}

#[test]
fn an_answer_counts_from_when_its_question_was_sent() {
    let mut state = state(policy(15.0, 5.0));
    state.on(Event::Tick, at(105.0));
    assert_eq!(state.asked(), Some(Question::Beat));
    let effects = state.on(Event::Answered(Answer::Alive), at(108.0));
    assert_eq!(effects, [Effect::Guard(Some(at(119.0)))]);
    assert_eq!(state.next_deadline(at(108.0)), Some(at(110.0)));
}

#[test]
fn an_overtaken_answer_does_not_shorten_the_lease() {
    let mut state = state(policy(15.0, 5.0));
    state.heard = at(110.0);
    state.link = Link::Asked(Question::Beat, at(105.0));
    state.on(Event::Answered(Answer::Alive), at(111.0));
    assert_eq!(state.heard, at(110.0));
}

#[test]
fn without_grace_the_command_is_killed_when_it_would_be_told() {
    let mut state = state(policy(3.0, 0.0));
    let effects = state.on(Event::Tick, at(102.0));
    assert!(effects.contains(&Effect::Kill));
}

#[test]
fn a_command_that_has_ended_in_time_was_not_late() {
    let mut state = state(policy(15.0, 5.0));
    // pglock itself was frozen meanwhile.
    state.on(Event::CommandEnded(Change::Exited(3), true), at(200.0));
    assert!(state.is_over(at(200.0)) && !state.lock_is_lost());
}

#[test]
fn a_frozen_command_that_is_told_to_end_does_not_outlive_its_grace() {
    let mut state = lost_so(policy(3600.0, 5.0), Loss::Cut, 103.0);
    let effects = state.on(Event::Signal(Signal::TERM), at(104.0));
    assert_eq!(effects, [Effect::Signal(Signal::TERM)]);
    state.on(Event::Tick, at(108.9));
    assert_eq!(state.stage, Stage::Frozen);
    state.on(Event::Tick, at(109.0));
    assert!(matches!(state.stage, Stage::Killed(_)));
}

#[test]
fn a_frozen_command_that_somebody_continues_is_stopped_again() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::Cut, 103.0);
    let effects = state.on(Event::CommandContinued, at(103.5));
    assert_eq!(effects, [Effect::Signal(Signal::STOP)]);
}

#[test]
fn a_server_that_lets_in_and_closes_is_left_alone_for_longer_and_longer() {
    let mut state = lost_so(policy(60.0, 5.0), Loss::Cut, 103.0);
    let mut now = 103.0;
    let mut attempts = 0;
    while now < 113.0 {
        if state.link == Link::Connecting {
            attempts += 1;
            state.on(Event::Connected, at(now));
            state.on(lost(Loss::Cut), at(now));
        }
        now += 0.01;
        state.on(Event::Tick, at(now));
    }
    assert!((10..20).contains(&attempts), "{attempts}");
}

#[test]
fn a_server_that_grants_the_lock_and_closes_is_left_alone_for_longer_and_longer() {
    let answers = [
        (Question::Retake, retake(Retake::Held(past(1e6)))),
        (Question::Rename, Event::Answered(Answer::Alive)),
    ];
    for rename in [false, true] {
        let mut state = state(Policy {
            kill_on_loss: false,
            rename,
            ..policy(60.0, 5.0)
        });
        let mut now = 103.0;
        state.on(lost(Loss::Cut), at(now));
        assert_eq!(state.link, Link::Connecting, "the first time at once");
        let mut sessions = 0;
        while now < 113.0 {
            if state.link == Link::Connecting {
                sessions += 1;
                state.on(Event::Connected, at(now));
                for (question, answer) in &answers[..1 + usize::from(rename)] {
                    assert_eq!(state.asked(), Some(*question));
                    state.on(answer.clone(), at(now));
                }
                state.on(lost(Loss::Cut), at(now));
            }
            now += 0.01;
            state.on(Event::Tick, at(now));
        }
        assert!((10..20).contains(&sessions), "{sessions}");
    }
}

#[test]
fn after_a_session_that_was_of_use_the_first_attempt_comes_at_once() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::All, 103.0);
    state.on(Event::Connected, at(103.0));
    state.on(retake(Retake::Held(past(0.1))), at(103.0));
    state.on(Event::Tick, at(108.0));
    assert_eq!(state.asked(), Some(Question::Beat));
    state.on(Event::Answered(Answer::Alive), at(108.0));
    state.on(lost(Loss::All), at(108.1));
    assert_eq!(state.link, Link::Connecting);
}

#[test]
fn a_pooler_whose_server_has_gone_is_left_alone_for_a_while() {
    let pooled = Policy {
        pooled: true,
        ..policy(15.0, 5.0)
    };
    let state = lost_so(pooled, Loss::One, 101.0);
    assert_eq!(state.link, Link::Down(at(105.0)));
    // Half of what is left to the deadline, where that is less.
    let state = lost_so(pooled, Loss::One, 105.0);
    assert_eq!(state.link, Link::Down(at(107.0)));
    // It was only its own connection that was cut.
    let state = lost_so(pooled, Loss::Cut, 101.0);
    assert_eq!(state.link, Link::Connecting);
}

#[test]
fn without_a_lease_the_end_of_the_session_is_the_end() {
    let mut state = state(policy(0.0, 5.0));
    state.on(lost(Loss::All), at(103.0));
    assert_eq!(state.stage, Stage::Terminating(at(108.0)));
}

#[test]
fn on_loss_continue_stops_nothing() {
    let continues = Policy {
        kill_on_loss: false,
        ..policy(15.0, 5.0)
    };
    for (name, event) in [("one", lost(Loss::One)), ("all", lost(Loss::All))] {
        let mut state = state(continues);
        let mut effects = state.on(event, at(103.0));
        effects.extend(state.on(Event::Connected, at(103.1)));
        effects.extend(state.on(retake(Retake::Held(past(1e6))), at(103.2)));
        effects.extend(state.on(Event::Tick, at(112.2)));
        assert!(
            !effects.iter().any(|effect| matches!(
                effect,
                Effect::Signal(_) | Effect::SignalAwake(_) | Effect::Kill | Effect::Guard(Some(_))
            )),
            "{name}: {effects:?}"
        );
        assert_eq!(state.stage, Stage::Running);
    }
}

/// A command whose server has said that all sessions end, and that has asked for its lock again.
fn asking() -> State {
    let mut state = lost_so(policy(15.0, 5.0), Loss::All, 101.0);
    let effects = state.on(Event::Connected, at(102.0));
    assert_eq!(effects, [Effect::Ask(Question::Retake)]);
    state
}

#[test]
fn a_lock_that_is_retaken_late_is_kept_until_the_command_has_ended() {
    for deadline in [109.0, 114.0] {
        let mut state = asking();
        state.on(Event::Tick, at(109.0));
        state.on(Event::Tick, at(deadline));
        let effects = state.on(retake(Retake::Held(past(20.0))), at(deadline + 0.1));
        assert!(!effects.contains(&Effect::Disconnect), "{effects:?}");
        // It was not known whether the server restarted before the question or after.
        let mut state = asking();
        let effects = state.on(retake(Retake::Held(past(5.0))), at(108.0));
        assert_eq!(effects, [Effect::Ask(Question::Past)]);
        state.on(Event::Tick, at(109.0));
        state.on(Event::Tick, at(deadline));
        let age = Event::Answered(Answer::Past(past(6.0)));
        let effects = state.on(age, at(deadline + 0.1));
        assert!(!effects.contains(&Effect::Disconnect), "{effects:?}");
    }
}

#[test]
fn a_command_that_has_its_grace_is_killed_when_somebody_else_has_the_lock() {
    let mut state = asking();
    state.on(Event::Tick, at(109.0));
    let effects = state.on(retake(Retake::Busy(past(1e6))), at(110.0));
    assert!(effects.contains(&Effect::Kill), "{effects:?}");
    // One that is not this pglock's own, as it turns out.
    let mut state = asking();
    let effects = state.on(retake(Retake::Busy(past(1e6))), at(108.0));
    assert_eq!(effects, [Effect::Ask(Question::Holder)]);
    state.on(Event::Tick, at(109.0));
    let other = Event::Answered(Answer::Holder(Some(time(1.0))));
    let effects = state.on(other, at(110.0));
    assert!(effects.contains(&Effect::Kill), "{effects:?}");
}

#[test]
fn on_loss_continue_continues_what_its_user_had_stopped() {
    let mut continues = policy(15.0, 5.0);
    continues.kill_on_loss = false;
    for answer in [
        Retake::Held(past(1e6)),
        Retake::Held(past(0.1)),
        Retake::Busy(past(1e6)),
    ] {
        let mut state = lost_so(continues, Loss::Cut, 103.0);
        let mut effects = state.on(Event::CommandStopped(Signal::TSTP, false), at(103.1));
        effects.extend(state.on(Event::Woken(true), at(104.0)));
        effects.extend(state.on(Event::Connected, at(104.1)));
        effects.extend(state.on(retake(answer), at(104.2)));
        effects.extend(state.on(Event::Answered(Answer::Holder(None)), at(104.3)));
        effects.extend(state.on(Event::Tick, at(120.0)));
        let last = effects.iter().rev().find(|effect| {
            [
                Effect::Continue,
                Effect::Signal(Signal::CONT),
                Effect::Signal(Signal::STOP),
            ]
            .contains(effect)
        });
        assert_ne!(
            last,
            Some(&Effect::Signal(Signal::STOP)),
            "{answer:?} {effects:?}"
        );
    }
}

#[test]
fn a_lease_that_may_be_out_of_force_is_not_kept_by_the_guardian() {
    let mut state = state(policy(15.0, 5.0));
    let effects = state.on(Event::CommandStopped(Signal::TSTP, false), at(103.0));
    assert_eq!(effects, [Effect::Ask(Question::Lift)]);
    let effects = state.on(Event::Tick, at(104.0));
    assert_eq!(
        effects,
        [
            Effect::Guard(None),
            Effect::Signal(Signal::STOP),
            Effect::Suspend
        ]
    );
    // The lease begins anew with the answer that the lock is held.
    state.on(Event::Woken(true), at(120.0));
    state.on(Event::Answered(Answer::Alive), at(120.1));
    let effects = state.on(Event::Answered(Answer::Check(true)), at(120.2));
    assert!(
        effects.contains(&Effect::Guard(Some(at(134.1)))),
        "{effects:?}"
    );
    assert_eq!(state.stage, Stage::Running);
}

#[test]
fn a_lock_that_is_retaken_long_after_its_lease_may_have_been_somebody_else_s() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::All, 103.0);
    state.on(Event::Connected, at(103.1));
    // pglock is stopped before the answer comes, and the server restarts meanwhile.
    state.on(Event::CommandStopped(Signal::TSTP, false), at(103.2));
    state.on(Event::Tick, at(104.2));
    assert_eq!(state.stage, Stage::Suspended);
    state.on(Event::Woken(true), at(140.0));
    state.on(retake(Retake::Held(past(30.0))), at(140.1));
    assert_eq!(state.asked(), Some(Question::Past));
    let effects = state.on(Event::Answered(Answer::Past(past(30.1))), at(140.2));
    assert!(
        effects.contains(&Effect::Say(Line::Killing(Why::RetakenLate))),
        "{effects:?}"
    );
}

#[test]
fn a_stopped_command_that_is_told_to_end_meanwhile_is_continued_when_it_may_run() {
    let mut alone = policy(15.0, 5.0);
    alone.has_terminal = false;
    let mut state = state(alone);
    state.on(Event::CommandStopped(Signal::STOP, false), at(102.0));
    state.on(lost(Loss::Cut), at(103.0));
    state.on(Event::Signal(Signal::TERM), at(103.1));
    state.on(Event::Connected, at(103.2));
    let effects = state.on(retake(Retake::Held(past(0.1))), at(103.3));
    assert!(
        effects.contains(&Effect::Signal(Signal::CONT)),
        "{effects:?}"
    );
}

#[test]
fn a_command_that_pglock_has_continued_is_not_taken_for_stopped() {
    let mut state = state(policy(15.0, 5.0));
    state.on(Event::CommandStopped(Signal::TSTP, false), at(101.0));
    state.on(Event::Answered(Answer::Alive), at(101.1));
    state.on(Event::Woken(true), at(102.0));
    let effects = state.on(Event::Answered(Answer::Check(true)), at(102.1));
    assert!(effects.contains(&Effect::Continue), "{effects:?}");
    // Before it is told that the command was continued.
    state.on(lost(Loss::Cut), at(102.1));
    state.on(Event::Connected, at(102.2));
    let effects = state.on(retake(Retake::Held(past(0.05))), at(102.3));
    assert!(
        effects.contains(&Effect::Signal(Signal::CONT)),
        "{effects:?}"
    );
}

#[test]
fn a_command_without_grace_is_killed_before_the_guardian_would() {
    for (grace, told_at) in [(0.0, 113.9), (1.0, 113.0)] {
        let mut state = state(policy(15.0, grace));
        state.on(Event::Tick, at(told_at - 0.01));
        assert_eq!(state.stage, Stage::Running);
        let effects = state.on(Event::Tick, at(told_at));
        assert_eq!(effects.contains(&Effect::Kill), grace == 0.0);
    }
}

#[test]
fn a_server_that_let_in_but_found_no_guardian_has_served() {
    let mut state = lost_so(policy(15.0, 5.0), Loss::One, 103.0);
    state.on(not_connected(Barrier::Unguarded), at(103.0));
    // It goes down after that, and others may have had the lock before.
    state.on(Event::Tick, at(103.1));
    state.on(not_connected(Barrier::NotServing), at(103.1));
    state.on(not_connected(Barrier::Unreachable), at(103.2));
    assert_eq!(state.stage, Stage::Frozen);
}

#[test]
fn what_a_frozen_command_leaves_behind_runs_on_unless_its_user_has_stopped_it() {
    let finish = |state: &mut State| {
        state.on(
            Event::CommandEnded(Change::Killed(Signal::KILL), true),
            at(103.5),
        );
        assert!(state.is_over(at(103.5)));
        state.finish()
    };
    let mut frozen = lost_so(policy(15.0, 5.0), Loss::One, 103.0);
    let expected = [Effect::Signal(Signal::CONT), Effect::Guard(None)];
    assert_eq!(finish(&mut frozen), expected);
    let mut stopped = state(Policy {
        has_terminal: false,
        ..policy(15.0, 5.0)
    });
    stopped.on(Event::CommandStopped(Signal::STOP, false), at(102.0));
    stopped.on(lost(Loss::One), at(103.0));
    assert_eq!(finish(&mut stopped), [Effect::Guard(None)]);
    assert_eq!(finish(&mut state(policy(15.0, 5.0))), [Effect::Guard(None)]);
}

#[test]
fn what_the_guardian_has_left_of_a_group_is_ended_before_the_lock_is_given_up() {
    let mut state = state(policy(15.0, 5.0));
    let effects = state.on(Event::GuardianFired, at(115.0));
    assert!(effects.contains(&Effect::Say(Line::Fired(time(15.0)))));
    assert!(effects.contains(&Effect::Kill));
    state.on(
        Event::CommandEnded(Change::Killed(Signal::KILL), true),
        at(115.0),
    );
    assert!(!state.is_over(at(115.0)), "a member may be left");
    state.on(Event::GroupGone, at(115.0));
    assert!(state.is_over(at(115.0)) && state.lock_is_lost());
}

#[test]
fn a_group_that_is_given_up_is_killed_once_more() {
    // When the lease is over, or two seconds later.
    for (ttl, given_up_at) in [(15.0, 118.0), (0.0, 105.0)] {
        let mut state = state(policy(ttl, 5.0));
        state.kill(Why::GoneMeanwhile, at(103.0));
        let dead = Event::CommandEnded(Change::Killed(Signal::KILL), true);
        state.on(dead, at(103.0));
        assert!(!state.is_over(at(given_up_at - 0.1)), "ttl {ttl}");
        // As a pglock finds it that was frozen meanwhile: without a tick before.
        assert!(state.is_over(at(given_up_at)), "ttl {ttl}");
        let mut gone = state.clone();
        assert_eq!(state.finish(), [Effect::Kill, Effect::Guard(None)]);
        // Its number may be another's by now.
        gone.on(Event::GroupGone, at(given_up_at));
        assert_eq!(gone.finish(), [Effect::Guard(None)]);
    }
}

#[test]
fn a_session_that_ends_after_its_deadline_is_not_lost_twice() {
    let mut state = state(Policy {
        kill_on_loss: false,
        ..policy(15.0, 5.0)
    });
    let effects = state.on(lost(Loss::One), at(110.0));
    let said = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Say(_)));
    assert_eq!(said.count(), 1, "{effects:?}");
}

/// What a run of three hosts does that has lost its session so, and meets this server next.
fn meets(loss: Loss, found: Past) -> (State, Vec<Effect>) {
    let mut state = of_three();
    state.on(lost(loss), at(103.0));
    state.on(not_connected(Barrier::Unreachable), at(103.1));
    assert_eq!(state.place, 1);
    state.on(Event::Connected, at(105.0));
    let effects = state.on(retake(Retake::Held(found)), at(105.1));
    (state, effects)
}

#[test]
fn a_lock_is_taken_again_where_a_server_was_promoted_since() {
    for loss in [Loss::Cut, Loss::One, Loss::All] {
        let (state, effects) = meets(loss, promoted(1.0, Some(NEXT)));
        let said = format!("{}", Line::Promoted(time(4.1)));
        assert!(
            said.contains("was promoted; the lock was taken again 4.1 s"),
            "{said}"
        );
        assert!(
            effects.contains(&Effect::Say(Line::Promoted(time(4.1)))),
            "{effects:?}"
        );
        assert_eq!((state.stage, state.history), (Stage::Running, Some(NEXT)));
        assert_eq!(state.heard, at(105.0));
    }
    // It was started again meanwhile: its recovery is forgotten, its start is not.
    let restarted = Past {
        lost: time(0.5),
        promoted: None,
        history: Some(NEXT),
    };
    assert_eq!(meets(Loss::One, restarted).0.stage, Stage::Running);
}

#[test]
fn a_promoted_server_whose_answer_was_long_under_way_has_served_nobody_before() {
    let mut state = of_three();
    state.on(lost(Loss::One), at(101.1));
    state.on(Event::Connected, at(101.2));
    // Promoted at 101.1, but by what it tells at 102 at the latest: after it let pglock in.
    state.on(retake(Retake::Held(promoted(0.9, Some(NEXT)))), at(103.0));
    assert_eq!(state.asked(), Some(Question::Past));
    let found = promoted(1.05, Some(NEXT));
    let effects = state.on(Event::Answered(Answer::Past(found)), at(103.1));
    assert!(
        effects.contains(&Effect::Say(Line::Promoted(time(2.1)))),
        "{effects:?}"
    );
    assert_eq!(state.stage, Stage::Running);
}

#[test]
fn no_other_server_than_one_that_was_promoted_since_will_do() {
    let elsewhere = |cluster, timeline| Some(History { cluster, timeline });
    for (found, why) in [
        (promoted(4.3, Some(NEXT)), "before the last sign"),
        (promoted(1.0, elsewhere(7, 3)), "an old primary"),
        (promoted(1.0, elsewhere(8, 5)), "another cluster"),
        (promoted(1.0, None), "nothing told"),
        (
            Past {
                promoted: None,
                ..promoted(1.0, Some(NEXT))
            },
            "no promotion since it was started",
        ),
    ] {
        let (state, effects) = meets(Loss::One, found);
        assert!(effects.contains(&Effect::Kill), "{why}: {effects:?}");
        // The lease is still that of the server before.
        assert_eq!(state.heard, at(101.0), "{why}");
    }
}

#[test]
fn a_checkpoint_of_a_server_that_was_promoted_long_ago_is_no_promotion() {
    // The session was ended alone; the bound for the promotion is the checkpoint of a moment ago.
    let mut state = of_three();
    state.on(lost(Loss::One), at(103.0));
    state.on(Event::Connected, at(103.1));
    let found = promoted(0.5, Some(HELD));
    state.on(retake(Retake::Held(found)), at(103.2));
    assert_eq!(state.stage, Stage::Terminating(at(108.2)));
}

#[test]
fn a_promotion_after_the_server_has_served_others_is_no_excuse() {
    let mut state = of_three();
    state.on(lost(Loss::One), at(103.0));
    // It let us in, so the session before was ended alone; then the primary goes, and another is promoted.
    state.on(Event::Connected, at(103.0));
    state.on(lost(Loss::One), at(103.1));
    state.on(Event::Tick, at(104.0));
    state.on(Event::Connected, at(105.0));
    let effects = state.on(retake(Retake::Held(promoted(1.0, Some(NEXT)))), at(105.1));
    assert!(effects.contains(&Effect::Kill), "{effects:?}");
}

#[test]
fn a_standby_that_lets_in_serves_no_locks() {
    let mut state = of_three();
    state.on(lost(Loss::One), at(103.0));
    for (round, moment) in [103.1, 103.3, 103.5].into_iter().enumerate() {
        state.on(not_connected(Barrier::Unreachable), at(moment));
        state.on(Event::Connected, at(moment));
        let effects = state.on(retake(Retake::Standby), at(moment));
        assert!(effects.contains(&Effect::Disconnect), "{round}");
        assert_eq!((state.stage, state.place), (Stage::Frozen, 2));
        state.on(not_connected(Barrier::Unreachable), at(moment));
        assert_eq!(state.place, 0);
        state.on(Event::Tick, at(moment + 0.1));
    }
    state.on(not_connected(Barrier::Unreachable), at(105.0));
    state.on(Event::Connected, at(105.0));
    state.on(retake(Retake::Held(promoted(0.5, Some(NEXT)))), at(105.1));
    assert_eq!(state.stage, Stage::Running);
}

#[test]
fn nobody_on_a_promoted_server_can_be_the_session_of_before() {
    let mut state = of_three();
    state.on(lost(Loss::One), at(103.0));
    state.on(not_connected(Barrier::Unreachable), at(103.1));
    state.on(Event::Connected, at(105.0));
    let effects = state.on(retake(Retake::Busy(promoted(1.0, Some(NEXT)))), at(105.1));
    assert!(effects.contains(&Effect::Kill), "{effects:?}");
}

#[test]
fn each_place_has_its_turn_and_none_waits_for_the_silence_of_another() {
    let mut state = of_three();
    let connects = |effects: &[Effect]| {
        effects.iter().find_map(|effect| {
            if let Effect::Connect(place, patience) = effect {
                Some((*place, patience.as_secs_f64()))
            } else {
                None
            }
        })
    };
    let share = 2.0 / 3.0;
    let near = |found: Option<(u32, f64)>, place, patience: f64| {
        found.is_some_and(|(at, time)| at == place && (time - patience).abs() < 1e-6)
    };
    let effects = state.on(lost(Loss::One), at(103.0));
    assert!(near(connects(&effects), 0, share), "{effects:?}");
    let effects = state.on(not_connected(Barrier::Silence), at(103.6));
    assert!(near(connects(&effects), 1, share), "{effects:?}");
    let effects = state.on(not_connected(Barrier::Unreachable), at(103.7));
    assert!(near(connects(&effects), 2, share), "{effects:?}");
    // One of them has answered: the next round is as patient, after a pause.
    let effects = state.on(not_connected(Barrier::Silence), at(104.0));
    let effects = [effects, state.on(Event::Tick, at(104.0))].concat();
    assert!(near(connects(&effects), 0, share), "{effects:?}");
    for (moment, place) in [(104.1, 1), (104.2, 2)] {
        let effects = state.on(not_connected(Barrier::Silence), at(moment));
        assert!(near(connects(&effects), place, share), "{effects:?}");
    }
    // None has: it may be the way.
    let effects = state.on(not_connected(Barrier::Silence), at(104.3));
    assert!(near(connects(&effects), 0, 2.0 * share), "{effects:?}");
}

#[test]
fn what_another_host_says_is_not_said_of_the_server_that_is_gone() {
    let mut state = of_three();
    state.on(lost(Loss::One), at(103.0));
    state.on(not_connected(Barrier::Unreachable), at(103.0));
    // A standby that is starting.
    for barrier in [Barrier::Starting, Barrier::Down] {
        state.on(not_connected(barrier), at(103.1));
        assert_eq!(state.stage, Stage::Frozen);
    }
}

#[test]
fn where_the_server_stood_is_not_known_the_address_has_to_do() {
    // Lost before it could be asked, or by a role that is not told.
    for history in [None, Some(NEXT)] {
        let mut state = lost_so(policy(15.0, 5.0), Loss::One, 100.5);
        state.on(Event::Connected, at(100.6));
        let found = Past {
            history,
            ..past(0.05)
        };
        state.on(retake(Retake::Held(found)), at(100.7));
        assert_eq!(state.stage, Stage::Running);
        let mut state = lost_so(policy(15.0, 5.0), Loss::One, 100.5);
        state.policy.others = 1;
        state.on(not_connected(Barrier::Unreachable), at(100.5));
        state.on(Event::Connected, at(100.6));
        let effects = state.on(retake(Retake::Held(found)), at(100.7));
        assert!(effects.contains(&Effect::Kill), "{effects:?}");
    }
}

#[test]
fn an_answer_that_is_not_confirmed_is_none() {
    let mut state = state(policy(15.0, 5.0));
    let unconfirmed = || Event::Answered(Answer::Unconfirmed("no standby".to_owned()));
    state.on(Event::Tick, at(105.0));
    let mut now = 105.0;
    while now < 108.7 {
        assert_eq!(state.asked(), Some(Question::Beat));
        // Asked again, but not without a pause.
        assert_eq!(state.on(unconfirmed(), at(now)), []);
        assert_eq!(state.asked(), None);
        now += 0.1;
        assert_eq!(state.next_deadline(at(now)), Some(at(now)));
        state.on(Event::Tick, at(now));
    }
    assert_eq!(state.heard, at(HEARD));
    let effects = state.on(Event::Tick, at(109.0));
    let why = Why::Silence(time(9.0), Some("no standby".to_owned()));
    assert!(
        effects.contains(&Effect::Say(Line::Terminating(why))),
        "{effects:?}"
    );
}

#[test]
fn in_the_transaction_that_holds_the_lock_nothing_is_asked_that_could_be_refused() {
    for (pooled, terms, asks) in [
        (false, 15.0, true),
        (true, 15.0, false),
        (false, 0.0, false),
    ] {
        let policy = Policy {
            pooled,
            ..policy(terms, if terms > 0.0 { 5.0 } else { 0.0 })
        };
        let mut state = State::new(policy, at(HEARD), at(HEARD));
        state.on(Event::Tick, at(101.0));
        let asked = asks.then_some(Question::History);
        assert_eq!(state.asked(), asked);
    }
}

#[test]
fn a_time_is_said_in_seconds() {
    let why = || "why".to_owned();
    for line in [
        Line::ConnectionLost(time(4.04), why()).to_string(),
        Line::Restarted(time(4.04)).to_string(),
        Line::Promoted(time(4.04)).to_string(),
        Line::Fired(time(4.04)).to_string(),
        Why::Silence(time(4.04), None).to_string(),
        Why::Silence(time(4.04), Some(why())).to_string(),
        Why::ToldToEnd(time(4.04)).to_string(),
        Why::EndedAlone(time(4.04)).to_string(),
    ] {
        assert!(line.contains(" 4.0 s"), "{line}");
    }
}

/// A run of three hosts whose command has ended, and whose lock is kept until 120.
fn holding(kill_on_loss: bool) -> State {
    let mut state = of_three();
    state.hold_until = Some(at(120.0));
    state.policy.kill_on_loss = kill_on_loss;
    let effects = state.on(Event::CommandEnded(Change::Exited(7), true), at(102.0));
    assert!(effects.contains(&Effect::Hold) && effects.contains(&Effect::Guard(None)));
    state
}

#[test]
fn a_lock_that_is_kept_has_its_lease_and_its_end() {
    let mut state = holding(true);
    state.on(Event::Tick, at(106.0));
    assert_eq!(state.asked(), Some(Question::Beat));
    // No guardian has anybody to kill.
    assert_eq!(state.on(Event::Answered(Answer::Alive), at(106.1)), []);
    state.on(lost(Loss::Cut), at(107.0));
    state.on(Event::Connected, at(107.1));
    let another = retake(Retake::Held(promoted(0.1, Some(NEXT))));
    let effects = state.on(another, at(107.2));
    assert!(matches!(effects[..], [Effect::Say(Line::Promoted(_))]));
    assert!(!state.is_over(at(119.9)) && state.is_over(at(120.0)));
    assert!(!state.lock_is_lost());
}

#[test]
fn a_lock_that_is_kept_is_lost_with_its_lease_and_not_after_its_end() {
    let mut state = holding(true);
    let effects = state.on(Event::Tick, at(114.9));
    assert_eq!(effects, [Effect::Ask(Question::Beat)]);
    let effects = state.on(Event::Tick, at(115.0));
    assert!(matches!(effects[..], [Effect::Say(Line::HoldLost(_))]));
    assert!(state.is_over(at(115.0)) && state.lock_is_lost());
    let mut state = holding(true);
    state.on(Event::Tick, at(200.0));
    assert!(state.is_over(at(200.0)) && !state.lock_is_lost());
}

#[test]
fn a_kept_lock_that_somebody_may_have_had_is_given_up_unless_the_loss_is_to_be_borne() {
    for kill_on_loss in [true, false] {
        let mut state = holding(kill_on_loss);
        state.on(lost(Loss::One), at(103.0));
        state.on(Event::Connected, at(103.1));
        state.on(retake(Retake::Held(past(1e6))), at(103.2));
        assert_eq!(state.is_over(at(103.2)), kill_on_loss);
        assert_eq!(state.lock_is_lost(), kill_on_loss);
    }
}

#[test]
fn who_was_told_to_end_keeps_no_lock() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut state = of_three();
        state.hold_until = Some(at(120.0));
        state.on(Event::Signal(signal), at(102.0));
        state.on(Event::CommandEnded(Change::Exited(7), true), at(102.1));
        assert!(state.is_over(at(102.1)), "{signal}");
    }
}
