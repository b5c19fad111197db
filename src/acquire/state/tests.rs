//! The whole matrix of phases and events, held against `matrix.txt`, and what comes of several events in a row, all
//! with made-up clocks.

use super::*;

/// When pglock was started, and when it is.
const START: f64 = 100.0;
const NOW: f64 = 103.0;

fn at(seconds: f64) -> Moment {
    Moment::after_first(time(seconds))
}

fn time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A lock to be waited for, for half a minute, on one host.
fn plan() -> Plan {
    Plan {
        goal: Goal::Lock,
        server: "me@here:5432/db".to_owned(),
        hosts: 1,
        wait: Wait::Seconds(30),
        patience: Some(time(10.0)),
        ttl: Some(time(15.0)),
        fence: false,
        sync: false,
        verbose: true,
        slots: 3,
    }
}

fn error(message: &str, again: Again) -> HostError {
    HostError {
        message: message.to_owned(),
        again,
    }
}

fn connected() -> Event {
    Event::Connected(Welcome {
        version: "15.1".to_owned(),
        place: "here".to_owned(),
        cockroach: None,
    })
}

fn not_connected(again: Again) -> Event {
    Event::NotConnected(error("no", again))
}

fn verdict(verdict: Verdict) -> Event {
    Event::Answered(Answer::Verdict(verdict))
}

fn glance(glance: Option<Glance>) -> Event {
    Event::Answered(Answer::Glance(glance))
}

fn age(left: f64, is_held: bool) -> Event {
    aged(left, is_held, false)
}

fn promoted(left: f64) -> Event {
    aged(left, false, true)
}

fn aged(left: f64, is_held: bool, is_promotion: bool) -> Event {
    Event::Answered(Answer::Age(Some(Age {
        left: time(left),
        is_held,
        is_promotion,
    })))
}

fn refused(can_do_without: bool) -> Event {
    refused_for(can_do_without.then_some(Dispensable::Setting))
}

fn refused_for(can_do_without: Option<Dispensable>) -> Event {
    Event::Refused(Refusal {
        error: error("no", Again::Never),
        can_do_without,
    })
}

fn lost(is_statement_mode: bool) -> Event {
    Event::Lost(Loss {
        error: error("gone", Again::IfWaiting),
        is_statement_mode,
    })
}

fn withdrawn(answered: bool, granted: bool) -> Event {
    Event::Withdrawn { answered, granted }
}

const TRY: Question = Question::Try {
    scope: LockScope::Session,
    check: RestartCheck::HoldOff,
    waits: true,
    waited: false,
    exact: false,
};
const WAIT: Question = Question::Wait {
    milliseconds: 900,
    first: false,
    place: 7,
};

fn why() -> AttemptError {
    AttemptError::Host(error("why", Again::IfWaiting))
}

/// Every phase, with what it has beside it.
fn phases() -> Vec<(&'static str, State)> {
    let state = |phase| State {
        phase,
        asked: at(102.5),
        answer_by: Some(at(112.5)),
        sent: at(102.5),
        hosts_left: 1,
        prompt_until: at(NOW),
        ..State::new(plan(), at(START))
    };
    let queued = |phase| State {
        has_looked: true,
        place: Some(7),
        ..state(phase)
    };
    let pooled = |phase| State {
        scope: LockScope::Transaction,
        ..state(phase)
    };
    let beside = |phase| State {
        wants_token: true,
        held: true,
        ..pooled(phase)
    };
    let age = Question::Age {
        scope: LockScope::Session,
    };
    let holding_off = Phase::HoldingOff {
        deadline: at(NOW),
        whole: at(NOW),
    };
    vec![
        ("ready", state(Phase::Ready)),
        ("connecting", state(Phase::Connecting(time(10.0)))),
        (
            "connecting beside",
            beside(Phase::ConnectingBeside(time(10.0))),
        ),
        ("trying", state(Phase::Asking(TRY))),
        ("trying, pooled", pooled(Phase::Asking(TRY))),
        (
            "looking",
            state(Phase::Asking(Question::Look { from: Some(0) })),
        ),
        ("glancing", pooled(Phase::Asking(Question::Glance))),
        ("waiting", queued(Phase::Asking(WAIT))),
        (
            "leaving a transaction",
            State {
                reply: Some(Reply::Verdict(Verdict::Busy)),
                ..pooled(Phase::Asking(Question::Rollback))
            },
        ),
        ("asking age", state(Phase::Asking(age))),
        ("naming holders", state(Phase::Asking(Question::Holders))),
        ("fetching token", beside(Phase::Asking(Question::Token))),
        ("renewing", state(Phase::Asking(Question::Renew))),
        ("naming standbys", state(Phase::Asking(Question::Standbys))),
        ("listing", state(Phase::Asking(Question::Listing))),
        ("before a turn", queued(Phase::Pausing(Pause::Turn(false)))),
        ("resting", state(Phase::Pausing(Pause::Rest))),
        ("before a glance", pooled(Phase::Pausing(Pause::Glance))),
        ("before a round", state(Phase::Pausing(Pause::Round))),
        ("holding off", state(holding_off)),
        (
            "settling",
            State {
                held: true,
                ..state(Phase::Settling)
            },
        ),
        ("cancelling", state(Phase::Cancelling(why()))),
        ("withdrawing", state(Phase::Withdrawing(why()))),
        ("withdrawing, pooled", pooled(Phase::Withdrawing(why()))),
        ("rolling back", pooled(Phase::RollingBack(why()))),
        ("releasing", state(Phase::Releasing(why()))),
        ("done", state(Phase::Done)),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    vec![
        ("begin", Event::Begin),
        ("connected", connected()),
        (
            "connected to CockroachDB",
            Event::Connected(Welcome {
                cockroach: Some("v1".to_owned()),
                ..Welcome::default()
            }),
        ),
        ("not connected", not_connected(Again::IfWaiting)),
        ("not connected, for good", not_connected(Again::Never)),
        ("held", verdict(Verdict::Held(None))),
        ("busy", verdict(Verdict::Busy)),
        ("busy, first in the queue", verdict(Verdict::QueueHead)),
        ("place", verdict(Verdict::Place(7))),
        ("young", verdict(Verdict::RecentlyRestarted)),
        ("pooled", verdict(Verdict::Pooled)),
        ("standby", verdict(Verdict::Standby)),
        ("another count", verdict(Verdict::Differs(5))),
        ("perhaps another count", verdict(Verdict::Doubtful)),
        ("lie", verdict(Verdict::Lie("a lie".to_owned()))),
        ("seen free", glance(Some(Glance::Free))),
        ("seen busy", glance(Some(Glance::Busy(time(7.0))))),
        ("nothing seen", glance(None)),
        ("young for 5 s", age(5.0, false)),
        ("young, and held again", age(5.0, true)),
        ("promoted 10 s ago", promoted(5.0)),
        ("not young", age(0.0, false)),
        ("no age", Event::Answered(Answer::Age(None))),
        (
            "holders",
            Event::Answered(Answer::Holders(vec!["somebody".to_owned()])),
        ),
        ("token", Event::Answered(Answer::Token(Some(7)))),
        ("no token", Event::Answered(Answer::Token(None))),
        (
            "list",
            Event::Answered(Answer::Listing {
                is_standby: Some(false),
            }),
        ),
        (
            "list of a standby",
            Event::Answered(Answer::Listing {
                is_standby: Some(true),
            }),
        ),
        (
            "standbys",
            Event::Answered(Answer::Standbys(Some("any 1 (b, c)".to_owned()))),
        ),
        (
            "no standbys",
            Event::Answered(Answer::Standbys(Some(String::new()))),
        ),
        ("any answer", Event::Answered(Answer::Any)),
        ("refused", refused(false)),
        ("refused for a setting", refused(true)),
        (
            "refused to tell of a promotion",
            refused_for(Some(Dispensable::Promotion)),
        ),
        ("answer to nothing", Event::Unasked),
        ("not to be said", Event::Unsaid("no words".to_owned())),
        ("no guardian", Event::Unguarded("no room".to_owned())),
        ("late", Event::Late),
        ("lost", lost(false)),
        ("lost in statement mode", lost(true)),
        ("time has passed", Event::Passed),
        ("SIGTERM", Event::Signal(Signal::TERM)),
        ("withdrawn without an answer", withdrawn(false, false)),
        ("withdrawn and answered", withdrawn(true, false)),
        ("withdrawn and granted", withdrawn(true, true)),
        ("finished", Event::Finished),
    ]
}

const UNEXPECTED: &str = "what happened was not what pglock was waiting for";

fn after(until: Moment, now: f64) -> String {
    format!("{:.2} s", until.since(at(now)).as_secs_f64())
}

fn shown(order: &Order, now: f64) -> String {
    match order {
        Order::Connect(dial) => format!("connect to host {}", dial.host),
        Order::ConnectBeside(_) => "connect beside".to_owned(),
        Order::Ask { question, .. } => format!("ask {}", asked(*question)),
        Order::Pause { until, .. } => format!("pause for {}", after(*until, now)),
        Order::Watch(until) => format!("watch for {}", after(*until, now)),
        Order::Cancel => "cancel".to_owned(),
        Order::Withdraw => "withdraw".to_owned(),
        Order::Rollback => "roll back".to_owned(),
        Order::Release => "release".to_owned(),
        Order::End(Ending::Taken(_)) => "take".to_owned(),
        Order::End(Ending::Listed) => "listed".to_owned(),
        Order::End(Ending::Stopped(AcquireError::NotObtained)) => "not obtained".to_owned(),
        Order::End(Ending::Stopped(AcquireError::Signal(signal))) => format!("end by {signal}"),
        Order::End(Ending::Stopped(AcquireError::Failed(message))) => format!("fail: {message}"),
    }
}

fn asked(question: Question) -> String {
    match question {
        Question::Try { scope, check, .. } => {
            let how = match check {
                RestartCheck::HoldOff => "try",
                RestartCheck::None => "try without check",
            };
            match scope {
                LockScope::Session => how.to_owned(),
                LockScope::Transaction => format!("{how} in a transaction"),
            }
        }
        Question::Look { from: None } => "look for the first time".to_owned(),
        Question::Look { from: Some(_) } => "look".to_owned(),
        Question::Wait {
            milliseconds,
            first,
            place,
        } => {
            let head = if first { " as the first" } else { "" };
            format!("wait {milliseconds} ms in place {place}{head}")
        }
        Question::Glance => "glance".to_owned(),
        Question::Rollback => "rollback".to_owned(),
        Question::Age { .. } => "age".to_owned(),
        Question::Holders => "holders".to_owned(),
        Question::Token => "token".to_owned(),
        Question::Renew => "renew".to_owned(),
        Question::Standbys => "standbys".to_owned(),
        Question::Listing => "list".to_owned(),
    }
}

fn said(line: &Line) -> &'static str {
    match line {
        Line::NoStandbys => "say no standbys",
        Line::Connecting(_) => "say connecting",
        Line::Connected { .. } => "say connected",
        Line::Obtaining(_) => "say obtaining",
        Line::TryingAgain(_) => "say trying again",
        Line::Refused(Dispensable::Setting, _) => "say setting refused",
        Line::Refused(Dispensable::Promotion, _) => "say promotion hidden",
        Line::HoldingOff {
            is_promotion: false,
            ..
        } => "say holding off",
        Line::HoldingOff {
            is_promotion: true, ..
        } => "say holding off after a promotion",
        Line::HeldBy(_) => "say holder",
        Line::Held { .. } => "say held",
    }
}

fn is_unexpected(order: &Order) -> bool {
    *order == Order::End(Ending::Stopped(failed(UNEXPECTED)))
}

#[test]
fn each_pair_of_phase_and_event_is_decided_as_the_table_says() {
    let mut table = format!(
        "What comes of each event in each phase. There is one host; pglock was started at {START} and waits for 30 s, the last \
         question was asked at 102.5, it is {NOW}. In all phases that are not named the event is unexpected: the attempt \
         ends without a lock.\n\nThe phases: {}.\n",
        phases()
            .iter()
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join("; ")
    );
    for (event_name, event) in events() {
        table.push_str(&format!("\n{event_name}\n"));
        let mut unexpected = 0;
        for (phase_name, mut state) in phases() {
            let Step { lines, order } = state.on(event.clone(), at(NOW), &mut || 0.5);
            let is_over = matches!(order, Order::End(_));
            assert_eq!(is_over, state.phase == Phase::Done, "{order:?}");
            if is_unexpected(&order) {
                unexpected += 1;
                continue;
            }
            let mut done: Vec<String> = lines.iter().map(|line| said(line).to_owned()).collect();
            done.push(shown(&order, NOW));
            table.push_str(&format!("    {phase_name:22} {}\n", done.join(", ")));
        }
        if unexpected > 0 {
            table.push_str(&format!("    unexpected in {unexpected} others\n"));
        }
    }
    let expected = include_str!("../matrix.txt");
    assert!(table == expected, "the table is now:\n{table}");
}

/// An attempt, and the moment that it is at.
struct Run {
    state: State,
    now: f64,
    /// Half of what the next pauses are random in.
    random: f64,
    lines: Vec<String>,
}

impl Run {
    /// An attempt that has just been begun.
    fn new(plan: Plan) -> (Self, Order) {
        let mut run = Self {
            state: State::new(plan, at(START)),
            now: START,
            random: 0.5,
            lines: Vec::new(),
        };
        let order = run.on(Event::Begin);
        (run, order)
    }

    /// One that has a session, on which it tries for the lock.
    fn connected(plan: Plan) -> Self {
        let (mut run, _) = Self::new(plan);
        assert_eq!(run.shown(connected()), "ask try");
        run
    }

    /// One that has found that a pooler is in between, and tries in a transaction.
    fn pooled(plan: Plan) -> Self {
        let mut run = Self::connected(plan);
        assert_eq!(
            run.shown(verdict(Verdict::Pooled)),
            "ask try in a transaction"
        );
        run
    }

    fn on(&mut self, event: Event) -> Order {
        let random = self.random;
        let step = self.state.on(event, at(self.now), &mut || random);
        self.lines.extend(step.lines.iter().map(Line::to_string));
        step.order
    }

    fn shown(&mut self, event: Event) -> String {
        let order = self.on(event);
        shown(&order, self.now)
    }

    /// The same, at this moment.
    fn at(&mut self, now: f64, event: Event) -> String {
        self.now = now;
        self.shown(event)
    }

    fn said(&self, line: &str) -> usize {
        self.lines.iter().filter(|said| *said == line).count()
    }
}

#[test]
fn a_lock_that_is_free_is_taken_at_once() {
    let mut run = Run::connected(plan());
    run.now += 0.05;
    let Order::End(Ending::Taken(taken)) = run.on(verdict(Verdict::Held(None))) else {
        panic!("not taken");
    };
    assert_eq!(
        taken,
        Taken {
            token: None,
            sent: at(START),
            waited: false
        }
    );
    assert_eq!(
        run.lines,
        [
            "Connecting to PostgreSQL at me@here:5432/db.",
            "Connected to PostgreSQL 15.1 at here.",
            "Obtaining lock with 30 seconds timeout..",
        ]
    );
}

#[test]
fn what_is_waited_for_is_said_by_how_long() {
    for (wait, line) in [
        (Wait::No, "Trying to obtain lock."),
        (Wait::Forever, "Obtaining lock without timeout.."),
    ] {
        let run = Run::connected(Plan { wait, ..plan() });
        assert_eq!(run.said(line), 1, "{:?}", run.lines);
    }
}

#[test]
fn a_host_that_is_silent_leaves_half_of_the_time_to_the_next() {
    let (mut run, order) = Run::new(Plan { hosts: 2, ..plan() });
    let Order::Connect(dial) = order else {
        panic!("{order:?}")
    };
    assert_eq!((dial.host, dial.until), (0, Some(at(105.0))));
    assert_eq!(dial.deadline, Some(at(110.0)));
    run.now = 105.0;
    let Order::Connect(dial) = run.on(Event::Late) else {
        panic!()
    };
    assert_eq!((dial.host, dial.until), (1, Some(at(115.0))));
    assert_eq!(run.at(105.2, connected()), "ask try");
    assert_eq!(run.at(105.21, verdict(Verdict::Held(None))), "take");
    assert_eq!(
        run.lines
            .iter()
            .filter(|line| line.contains("again"))
            .count(),
        0
    );
}

#[test]
fn a_standby_is_left_for_the_primary() {
    let mut run = Run::connected(Plan {
        hosts: 2,
        wait: Wait::No,
        ..plan()
    });
    assert_eq!(run.shown(verdict(Verdict::Standby)), "connect to host 1");
    assert_eq!(run.shown(connected()), "ask try");
    assert_eq!(run.shown(verdict(Verdict::Held(None))), "take");
    // It is said once only that the lock is being obtained.
    assert_eq!(run.said("Trying to obtain lock."), 1);
}

#[test]
fn two_hosts_that_fail_alike_are_said_once() {
    let (mut run, _) = Run::new(Plan {
        hosts: 2,
        wait: Wait::No,
        ..plan()
    });
    run.on(not_connected(Again::IfWaiting));
    assert_eq!(
        run.shown(not_connected(Again::IfWaiting)),
        "fail: could not connect: no"
    );
}

#[test]
fn one_that_is_full_is_tried_again_though_there_is_no_wait() {
    let (mut run, _) = Run::new(Plan {
        wait: Wait::No,
        ..plan()
    });
    let pauses = [
        "0.05 s", "0.10 s", "0.20 s", "0.40 s", "0.80 s", "1.00 s", "1.00 s",
    ];
    for pause in pauses {
        let order = run.on(not_connected(Again::Soon));
        assert_eq!(shown(&order, run.now), format!("pause for {pause}"));
        let Order::Pause {
            until,
            keeps_session: false,
        } = order
        else {
            panic!("{order:?}")
        };
        assert_eq!(
            run.at(until.since_first().as_secs_f64(), Event::Passed),
            "connect to host 0"
        );
    }
    assert_eq!(run.said("could not connect: no; trying again."), 1);
    assert_eq!(run.shown(connected()), "ask try");
    assert_eq!(run.shown(verdict(Verdict::Held(None))), "take");
}

#[test]
fn one_that_stays_full_is_given_up_with_its_own_words() {
    let (mut run, _) = Run::new(Plan {
        wait: Wait::No,
        ..plan()
    });
    run.now = 109.99;
    assert_eq!(run.shown(not_connected(Again::Soon)), "pause for 0.01 s");
    assert_eq!(run.at(110.0, Event::Passed), "fail: could not connect: no");
    // Nor is a late answer more telling than them.
    let (mut run, _) = Run::new(plan());
    run.on(not_connected(Again::Soon));
    run.on(Event::Passed);
    run.now = 130.0;
    assert_eq!(run.shown(Event::Late), "fail: could not connect: no");
}

#[test]
fn a_late_answer_is_cancelled_and_another_asked() {
    let mut run = Run::connected(plan());
    assert_eq!(run.at(110.0, Event::Late), "cancel");
    assert_eq!(run.shown(Event::Finished), "pause for 0.05 s");
    assert_eq!(
        run.said("no answer from the server within 10 s; trying again."),
        1
    );
    assert_eq!(run.shown(Event::Passed), "connect to host 0");
    // An answer that comes makes way for newer reasons.
    run.on(connected());
    run.on(verdict(Verdict::Busy));
    run.on(verdict(Verdict::Place(5)));
    assert_eq!(run.at(131.0, Event::Late), "cancel");
    assert_eq!(
        run.shown(Event::Finished),
        "fail: no answer from the server within 10.9 s"
    );
}

#[test]
fn a_question_has_time_until_the_wait_is_over_and_a_moment_more() {
    let answer_by = |plan: Plan| {
        let (mut run, _) = Run::new(plan);
        let Order::Ask { answer_by, .. } = run.on(connected()) else {
            panic!("nothing is asked");
        };
        answer_by.map(|by| by.since_first().as_secs_f64())
    };
    assert_eq!(answer_by(plan()), Some(110.0));
    let wait = Wait::Seconds(3);
    assert_eq!(answer_by(Plan { wait, ..plan() }), Some(104.0));
    // What another host leaves.
    let hosts = 2;
    let wait = Wait::Seconds(8);
    assert_eq!(
        answer_by(Plan {
            wait,
            hosts,
            ..plan()
        }),
        Some(104.0)
    );
    let patience = None;
    let wait = Wait::Forever;
    assert_eq!(
        answer_by(Plan {
            wait,
            hosts,
            patience,
            ..plan()
        }),
        None
    );
}

#[test]
fn a_wait_that_ends_names_the_holders() {
    let mut run = Run::connected(Plan {
        wait: Wait::Seconds(1),
        ..plan()
    });
    run.on(verdict(Verdict::Busy));
    assert_eq!(
        run.shown(verdict(Verdict::Place(5))),
        "ask wait 900 ms in place 5"
    );
    assert_eq!(
        run.at(100.9, verdict(Verdict::Busy)),
        "ask wait 100 ms in place 5"
    );
    assert_eq!(run.at(101.0, verdict(Verdict::Busy)), "ask holders");
    let holders = Answer::Holders(vec!["user me".to_owned(), "user you".to_owned()]);
    assert_eq!(run.shown(Event::Answered(holders)), "not obtained");
    assert_eq!(run.lines[3..], ["Held by user me.", "Held by user you."]);
    // Who need not know is not told.
    for wait in [Wait::No, Wait::Seconds(0)] {
        let mut run = Run::connected(Plan {
            wait,
            verbose: false,
            ..plan()
        });
        assert_eq!(run.shown(verdict(Verdict::Busy)), "not obtained");
    }
}

#[test]
fn the_first_in_the_queue_says_so_in_the_next_turn() {
    let mut run = Run::connected(Plan {
        wait: Wait::Forever,
        ..plan()
    });
    assert_eq!(
        run.shown(verdict(Verdict::Busy)),
        "ask look for the first time"
    );
    assert_eq!(
        run.shown(verdict(Verdict::Place(5))),
        "ask wait 900 ms in place 5"
    );
    assert_eq!(
        run.at(100.9, verdict(Verdict::QueueHead)),
        "ask wait 900 ms in place 5 as the first"
    );
    run.now = 101.0;
    let Order::End(Ending::Taken(taken)) = run.on(verdict(Verdict::Held(None))) else {
        panic!("not taken");
    };
    assert!(taken.waited);
    assert_eq!(taken.sent, at(100.9));
}

#[test]
fn a_server_that_does_not_wait_is_not_asked_without_a_pause() {
    let mut run = Run::connected(plan());
    run.on(verdict(Verdict::Busy));
    run.on(verdict(Verdict::Place(5)));
    let order = run.on(verdict(Verdict::QueueHead));
    assert_eq!(
        order,
        Order::Pause {
            until: at(100.45),
            keeps_session: true
        }
    );
    assert_eq!(
        run.at(100.45, Event::Passed),
        "ask wait 900 ms in place 5 as the first"
    );
}

#[test]
fn who_finds_no_place_rests_and_looks_again_at_even_intervals() {
    let mut run = Run::connected(Plan {
        wait: Wait::Seconds(3),
        ..plan()
    });
    run.random = 0.5;
    run.on(verdict(Verdict::Busy));
    // The first time only is drawn by lot.
    assert_eq!(run.shown(verdict(Verdict::Busy)), "pause for 0.45 s");
    for now in [100.45, 101.35] {
        assert_eq!(run.at(now, Event::Passed), "ask look");
        assert_eq!(
            run.at(now + 0.1, verdict(Verdict::Busy)),
            "pause for 0.80 s"
        );
    }
    assert_eq!(run.at(102.25, Event::Passed), "ask look");
    assert_eq!(
        run.shown(verdict(Verdict::Place(95))),
        "ask wait 750 ms in place 95"
    );
    // Another session has no place, and is not seen yet.
    let mut run = Run::connected(plan());
    run.on(verdict(Verdict::Busy));
    run.on(verdict(Verdict::Place(5)));
    run.on(lost(false));
    run.on(Event::Passed);
    run.on(connected());
    assert_eq!(
        run.shown(verdict(Verdict::Busy)),
        "ask look for the first time"
    );
    // The wait may end at rest.
    let mut run = Run::connected(Plan {
        wait: Wait::Seconds(1),
        ..plan()
    });
    run.random = 0.999;
    run.on(verdict(Verdict::Busy));
    run.on(verdict(Verdict::Busy));
    run.at(100.9, Event::Passed);
    assert_eq!(run.shown(verdict(Verdict::Busy)), "pause for 0.10 s");
    assert_eq!(run.at(101.0, Event::Passed), "ask holders");
}

#[test]
fn behind_a_pooler_it_is_looked_one_by_one_with_random_pauses() {
    let mut run = Run::pooled(plan());
    assert_eq!(run.shown(verdict(Verdict::Busy)), "ask rollback");
    let mut event = Event::Answered(Answer::Any);
    for (random, pause) in [(0.0, "0.25 s"), (0.5, "0.50 s"), (1.0, "0.75 s")] {
        run.random = random;
        let order = run.on(event);
        assert_eq!(shown(&order, run.now), format!("pause for {pause}"));
        assert!(matches!(
            order,
            Order::Pause {
                keeps_session: true,
                ..
            }
        ));
        assert_eq!(run.shown(Event::Passed), "ask glance");
        event = glance(Some(Glance::Busy(time(0.2))));
    }
    // Longer where others wait, too.
    let busy = glance(Some(Glance::Busy(time(7.0))));
    assert_eq!(run.shown(busy.clone()), "pause for 7.00 s");
    // Not beyond the end of the wait.
    assert_eq!(run.at(129.0, Event::Passed), "ask glance");
    assert_eq!(run.at(129.9, busy.clone()), "pause for 0.10 s");
    assert_eq!(run.at(130.0, Event::Passed), "ask glance");
    assert_eq!(run.shown(busy), "ask holders");
}

#[test]
fn behind_a_pooler_what_is_seen_free_is_tried_for() {
    for event in [glance(Some(Glance::Free)), refused(false)] {
        let mut run = Run::pooled(plan());
        run.on(verdict(Verdict::Busy));
        run.on(Event::Answered(Answer::Any));
        run.at(110.0, Event::Passed);
        assert_eq!(run.shown(event), "ask try in a transaction");
        // Somebody was quicker.
        run.on(verdict(Verdict::Busy));
        assert_eq!(run.shown(Event::Answered(Answer::Any)), "pause for 0.50 s");
        assert_eq!(run.shown(Event::Passed), "ask glance");
        run.on(glance(Some(Glance::Free)));
        assert_eq!(run.shown(verdict(Verdict::Held(None))), "take");
    }
}

/// Waiters behind a pooler, and the notes that are on its connections.
struct Crowd {
    waiters: Vec<Run>,
    /// When each looks next.
    next: Vec<f64>,
    notes: Vec<i64>,
    /// Whether the connections are used in turn, and not the same one over and over.
    in_turn: bool,
    looks: usize,
    seed: u64,
}

impl Crowd {
    /// So many, who have come within two seconds, on so many connections.
    fn new(count: usize, connections: usize, in_turn: bool) -> Self {
        let mut crowd = Self {
            waiters: Vec::new(),
            next: Vec::new(),
            notes: vec![0; connections],
            in_turn,
            looks: 0,
            seed: 1,
        };
        for place in 0..count {
            let mut run = Run::pooled(Plan {
                wait: Wait::Forever,
                ..plan()
            });
            run.random = crowd.random();
            run.now = START + 2.0 * place as f64 / count as f64;
            run.on(verdict(Verdict::Busy));
            crowd.waiters.push(run);
            crowd.next.push(0.0);
            crowd.comes_to(place, Event::Answered(Answer::Any));
        }
        crowd
    }

    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005) + 1;
        (self.seed >> 40) as f64 / (1 << 24) as f64
    }

    /// The one at this place pauses.
    fn comes_to(&mut self, place: usize, event: Event) {
        let order = self.waiters[place].on(event);
        let Order::Pause { until, .. } = order else {
            panic!("{order:?}");
        };
        self.next[place] = START + until.since(at(START)).as_secs_f64();
    }

    /// Has the next one look, if that is before this moment.
    fn look(&mut self, before: f64) -> Option<usize> {
        let places = 0..self.waiters.len();
        let place = places.min_by(|one, other| self.next[*one].total_cmp(&self.next[*other]))?;
        if self.next[place] >= before {
            return None;
        }
        self.looks += 1;
        let random = self.random();
        let run = &mut self.waiters[place];
        run.random = random;
        assert_eq!(run.at(self.next[place], Event::Passed), "ask glance");
        Some(place)
    }

    /// The lock is held until then.
    fn is_held_until(&mut self, until: f64) {
        while let Some(place) = self.look(until) {
            let connection = match self.in_turn {
                true => self.looks % self.notes.len(),
                false => 0,
            };
            // As `statements.txt` has it.
            let present = (self.next[place] * 1000.0) as i64;
            let ahead = (self.notes[connection] - present).clamp(0, 10_000);
            let ahead = 250 + ahead * 9750 / 10_000;
            self.notes[connection] = present + ahead;
            let ahead = Duration::from_millis(ahead as u64);
            self.comes_to(place, glance(Some(Glance::Busy(ahead))));
        }
    }

    /// Has the next one take it. Returns when that is.
    fn takes(&mut self) -> f64 {
        let place = self.look(f64::MAX).expect("a waiter");
        let mut run = self.waiters.swap_remove(place);
        self.next.swap_remove(place);
        run.on(glance(Some(Glance::Free)));
        assert_eq!(run.shown(verdict(Verdict::Held(None))), "take");
        run.now
    }
}

#[test]
fn a_crowd_behind_a_pooler_is_no_burden_and_none_is_late_in_it() {
    for (count, connections, in_turn) in [
        (200, 5, false),
        (200, 5, true),
        (40, 5, false),
        (10, 2, true),
        (2, 5, false),
    ] {
        for command in [0.01, 0.3, 2.0] {
            let mut crowd = Crowd::new(count, connections, in_turn);
            let mut now = START + 30.0;
            crowd.is_held_until(now);
            crowd.looks = 0;
            crowd.is_held_until(now + 30.0);
            now += 30.0;
            // Of two statements each.
            let statements = 2.0 * crowd.looks as f64 / 30.0;
            assert!(
                statements <= 100.0,
                "{count} on {connections}: {statements} a second"
            );
            let mut longest: f64 = 0.0;
            while !crowd.waiters.is_empty() {
                let taken = crowd.takes();
                longest = longest.max(taken - now);
                now = taken + 0.06 + command;
                crowd.is_held_until(now);
            }
            assert!(
                longest < 1.0,
                "{count} on {connections}, commands of {command} s: {longest} s late"
            );
        }
    }
}

#[test]
fn what_a_pooler_has_is_held_by_the_transaction_alone() {
    // One that has no pooler in a transaction has none.
    let mut run = Run::pooled(plan());
    run.on(verdict(Verdict::Pooled));
    assert_eq!(
        run.shown(Event::Answered(Answer::Any)),
        "fail: the server gave an unexpected answer to the lock call"
    );
}

#[test]
fn a_new_connection_is_tried_for_a_session_first() {
    let mut run = Run::pooled(plan());
    run.on(lost(false));
    run.on(Event::Passed);
    assert_eq!(run.shown(connected()), "ask try");
}

#[test]
fn who_has_held_off_takes_the_lock_without_caution() {
    let mut run = Run::connected(plan());
    assert_eq!(run.shown(verdict(Verdict::RecentlyRestarted)), "ask age");
    // The session has a lease as well: a third of it, and again.
    assert_eq!(run.shown(age(12.0, false)), "watch for 5.00 s");
    assert_eq!(run.at(105.0, Event::Passed), "ask age");
    assert_eq!(run.shown(age(7.0, true)), "watch for 5.00 s");
    assert_eq!(run.at(110.0, Event::Passed), "ask age");
    // The end stays where it was at first.
    assert_eq!(run.at(110.1, age(9.0, false)), "watch for 1.90 s");
    assert_eq!(run.at(112.0, Event::Passed), "ask try without check");
    // The session of one who came later may have held it, and have been ended before this one is.
    assert_eq!(run.shown(verdict(Verdict::Held(None))), "watch for 0.06 s");
    let line = "The server was restarted and lost its locks: holding off for 12.0 s, in which an earlier holder may \
                take its lock again.";
    assert_eq!(run.said(line), 1);
}

#[test]
fn behind_a_pooler_who_has_held_off_is_careful_anew() {
    let mut run = Run::pooled(plan());
    assert_eq!(
        run.shown(verdict(Verdict::RecentlyRestarted)),
        "ask rollback"
    );
    assert_eq!(run.shown(Event::Answered(Answer::Any)), "ask age");
    run.on(age(4.0, false));
    assert_eq!(run.at(104.0, Event::Passed), "ask try in a transaction");
    // Not young any more: it may be again before the next attempt comes through the pool's queue.
    run.on(verdict(Verdict::RecentlyRestarted));
    run.on(Event::Answered(Answer::Any));
    assert_eq!(run.shown(age(0.0, false)), "pause for 0.50 s");
    assert_eq!(run.at(104.5, Event::Passed), "ask glance");
    assert_eq!(
        run.shown(glance(Some(Glance::Free))),
        "ask try in a transaction"
    );
}

#[test]
fn no_hold_off_is_longer_than_the_ttl() {
    let mut run = Run::connected(Plan {
        wait: Wait::Forever,
        ..plan()
    });
    run.on(verdict(Verdict::RecentlyRestarted));
    run.on(age(1e6, false));
    let line = "holding off for 15.0 s";
    assert!(run.lines.iter().any(|said| said.contains(line)));
}

#[test]
fn a_wait_that_is_shorter_than_the_hold_off_ends_without_the_lock() {
    let mut run = Run::connected(Plan {
        wait: Wait::Seconds(2),
        ..plan()
    });
    run.on(verdict(Verdict::RecentlyRestarted));
    assert_eq!(run.shown(age(5.0, false)), "watch for 2.00 s");
    assert_eq!(run.at(102.0, Event::Passed), "not obtained");
}

#[test]
fn who_does_not_wait_holds_off_unless_the_lock_is_held_again() {
    let no_wait = || Plan {
        wait: Wait::No,
        ..plan()
    };
    let mut run = Run::connected(no_wait());
    run.on(verdict(Verdict::RecentlyRestarted));
    assert_eq!(run.shown(age(12.0, true)), "ask holders");
    let mut run = Run::connected(no_wait());
    run.on(verdict(Verdict::RecentlyRestarted));
    assert_eq!(run.shown(age(12.0, false)), "watch for 5.00 s");
    run.at(105.0, Event::Passed);
    run.on(age(7.0, false));
    run.at(110.0, Event::Passed);
    // The time for connecting is over, and this is not its.
    assert_eq!(run.shown(age(2.0, false)), "watch for 2.00 s");
    assert_eq!(run.at(112.0, Event::Passed), "ask try without check");
}

#[test]
fn a_server_cannot_be_young_for_ever() {
    let mut run = Run::pooled(plan());
    let mut now = START;
    loop {
        run.now = now;
        run.on(verdict(Verdict::RecentlyRestarted));
        let shown = run.shown(Event::Answered(Answer::Any));
        if shown != "ask age" {
            assert_eq!(shown, "pause for 0.05 s");
            break;
        }
        now += 4.0;
        run.on(age(4.0, false));
        run.at(now, Event::Passed);
    }
    assert_eq!(now, 120.0);
    // One that was not asked whether it is does not say so.
    for (ttl, check) in [
        (None, RestartCheck::HoldOff),
        (plan().ttl, RestartCheck::None),
    ] {
        let mut run = Run::connected(Plan { ttl, ..plan() });
        run.state.tried = check;
        assert_eq!(
            run.shown(verdict(Verdict::RecentlyRestarted)),
            "pause for 0.05 s"
        );
    }
}

#[test]
fn a_signal_in_any_phase_is_the_end() {
    for (name, mut state) in phases() {
        let mut event = Event::Signal(Signal::TERM);
        let mut orders = Vec::new();
        let ending = loop {
            let Step { order, .. } = state.on(event, at(NOW), &mut || 0.5);
            event = if order == Order::Withdraw {
                withdrawn(true, true)
            } else if [Order::Rollback, Order::Release].contains(&order) {
                Event::Finished
            } else {
                break order;
            };
            orders.push(shown(&order, NOW));
        };
        let is_end = ending == Order::End(Ending::Stopped(AcquireError::Signal(Signal::TERM)));
        assert!(
            is_end || name == "done" && is_unexpected(&ending),
            "{name}: {ending:?}"
        );
        let before: &[&str] = match name {
            "trying" | "looking" | "waiting" | "asking age" | "naming holders" | "renewing"
            | "naming standbys" | "listing" => &["withdraw", "release"],
            "trying, pooled" | "glancing" | "leaving a transaction" => &["withdraw", "roll back"],
            "connecting beside" | "settling" => &["release"],
            "fetching token" => &["withdraw", "roll back", "release"],
            "ready"
            | "connecting"
            | "before a turn"
            | "resting"
            | "before a glance"
            | "before a round"
            | "holding off"
            | "cancelling"
            | "withdrawing"
            | "withdrawing, pooled"
            | "rolling back"
            | "releasing"
            | "done" => &[],
            other => panic!("{other} is not decided"),
        };
        assert_eq!(orders, before, "{name}");
    }
}

#[test]
fn a_fencing_token_that_does_not_come_costs_the_lock() {
    let fenced = |wait| Plan {
        fence: true,
        wait,
        ..plan()
    };
    // One that comes with the lock is all there is to it.
    let mut run = Run::connected(fenced(Wait::No));
    let order = run.on(verdict(Verdict::Held(Some(7))));
    let Order::End(Ending::Taken(taken)) = order else {
        panic!("{order:?}");
    };
    assert_eq!(taken.token, Some(7));

    let fetches = || {
        let mut run = Run::pooled(fenced(Wait::Seconds(30)));
        // The wait may be over.
        run.now = 129.0;
        let Order::ConnectBeside(dial) = run.on(verdict(Verdict::Held(None))) else {
            panic!("no second connection");
        };
        assert_eq!((dial.host, dial.until), (0, Some(at(139.0))));
        run
    };
    let asks = || {
        let mut run = fetches();
        assert_eq!(run.shown(connected()), "ask token");
        run
    };
    let mut run = asks();
    let order = run.on(Event::Answered(Answer::Token(Some(8))));
    // The message that took the lock was sent 29 s ago.
    assert_eq!(shown(&order, run.now), "ask renew");
    let Order::End(Ending::Taken(taken)) = run.on(Event::Answered(Answer::Any)) else {
        panic!("not taken");
    };
    assert_eq!((taken.token, taken.sent), (Some(8), at(129.0)));

    for (mut run, event, message) in [
        (
            fetches(),
            not_connected(Again::IfWaiting),
            "could not connect: no",
        ),
        (
            fetches(),
            Event::Late,
            "could not connect: no answer from me@here:5432/db within 10 s",
        ),
        (asks(), refused(false), "the server refused it: no"),
        (
            asks(),
            lost(false),
            "the connection was lost before the server answered: gone",
        ),
    ] {
        assert_eq!(run.shown(event), "release");
        let shown = run.at(130.0, Event::Finished);
        assert_eq!(
            shown,
            format!(
                "fail: no fencing token: behind a pooler that takes a second connection for a moment, beside the one that \
                 holds the lock: {message}"
            )
        );
    }
    let mut run = asks();
    run.now = 139.0;
    assert_eq!(run.shown(Event::Late), "cancel");
    assert_eq!(run.shown(Event::Finished), "release");
    let mut run = asks();
    assert_eq!(run.shown(Event::Answered(Answer::Token(None))), "release");
    assert_eq!(
        run.shown(Event::Finished),
        "fail: the server gave no fencing token"
    );
}

#[test]
fn an_answer_that_was_long_under_way_is_followed_by_a_sign() {
    let mut run = Run::pooled(plan());
    assert_eq!(run.at(105.1, verdict(Verdict::Held(None))), "ask renew");
    let Order::End(Ending::Taken(taken)) = run.on(Event::Answered(Answer::Any)) else {
        panic!("not taken");
    };
    assert_eq!(taken.sent, at(105.1));
    // One that is an error is none.
    let mut run = Run::pooled(plan());
    run.at(105.1, verdict(Verdict::Held(None)));
    assert_eq!(
        run.shown(refused(false)),
        "fail: the server gave no sign that the lock is held: no"
    );
    let mut run = Run::pooled(plan());
    assert_eq!(run.at(105.0, verdict(Verdict::Held(None))), "take");
    let mut run = Run::pooled(Plan {
        ttl: None,
        ..plan()
    });
    assert_eq!(run.at(109.0, verdict(Verdict::Held(None))), "take");
}

#[test]
fn a_lock_that_is_granted_at_once_but_late_counts_when_the_session_has_stayed() {
    for ttl in [None, Some(time(15.0))] {
        // The wait may be over meanwhile: the lock is held.
        for wait in [Wait::No, Wait::Seconds(1)] {
            let plan = Plan {
                wait,
                ttl,
                ..plan()
            };
            let mut run = Run::connected(plan.clone());
            let order = run.at(100.98, verdict(Verdict::Held(None)));
            assert_eq!(order, "watch for 0.06 s");
            assert_eq!(run.at(101.04, Event::Passed), "ask renew");
            let Order::End(Ending::Taken(taken)) = run.on(Event::Answered(Answer::Any)) else {
                panic!("not taken");
            };
            assert_eq!((taken.sent, taken.waited), (at(101.04), false));

            // It went with the session of a holder that came later: the server goes down.
            let mut run = Run::connected(plan);
            run.at(100.06, verdict(Verdict::Held(None)));
            let end = run.at(100.07, lost(false));
            let words = "the connection was lost right after the lock was granted: gone";
            match wait {
                Wait::No => assert_eq!(end, format!("fail: {words}")),
                Wait::Seconds(_) | Wait::Forever => {
                    assert_eq!(run.said(&format!("{words}; trying again.")), 1);
                }
            }
        }
    }
}

#[test]
fn a_session_that_was_long_in_the_making_may_be_older_than_a_holder_s() {
    for (connected_at, expected) in [(100.5, "take"), (100.6, "watch for 0.06 s")] {
        let (mut run, _) = Run::new(plan());
        assert_eq!(run.at(connected_at, connected()), "ask try");
        assert_eq!(run.shown(verdict(Verdict::Held(None))), expected);
    }
}

#[test]
fn a_lock_that_was_waited_for_has_settled_on_the_server() {
    let mut run = Run::connected(plan());
    run.shown(verdict(Verdict::Busy));
    run.at(101.0, verdict(Verdict::Place(7)));
    assert_eq!(run.at(101.5, verdict(Verdict::Held(None))), "take");
}

#[test]
fn cockroach_is_refused_whatever_the_wait() {
    let (mut run, _) = Run::new(Plan { hosts: 2, ..plan() });
    let shown = run.shown(Event::Connected(Welcome {
        cockroach: Some("v23".to_owned()),
        ..Welcome::default()
    }));
    assert_eq!(
        shown,
        "fail: the server is CockroachDB (v23), whose advisory locks do not exclude anybody"
    );
}

#[test]
fn a_setting_that_is_refused_is_done_without_once() {
    let mut run = Run::connected(plan());
    assert_eq!(run.shown(refused(true)), "ask try");
    assert_eq!(run.said("The server refuses a setting: no."), 1);
    assert_eq!(run.shown(refused(false)), "fail: the lock call failed: no");
    // In a turn, behind a pooler, and while asking for the age.
    let mut run = Run::connected(plan());
    run.on(verdict(Verdict::Busy));
    assert_eq!(run.shown(refused(true)), "ask try");
    let mut run = Run::pooled(plan());
    assert_eq!(run.shown(refused(true)), "ask rollback");
    assert_eq!(
        run.shown(Event::Answered(Answer::Any)),
        "ask try in a transaction"
    );
    let mut run = Run::connected(plan());
    run.on(verdict(Verdict::RecentlyRestarted));
    assert_eq!(run.shown(refused(true)), "ask age");
    assert_eq!(
        run.shown(refused(false)),
        "fail: the server could not be asked for its age: no"
    );
}

#[test]
fn who_cannot_be_told_apart_is_not_listed() {
    let listing = || {
        let (mut run, _) = Run::new(Plan {
            goal: Goal::Listing,
            wait: Wait::No,
            ..plan()
        });
        assert_eq!(run.shown(connected()), "ask list");
        run
    };
    let answer = |is_standby| Event::Answered(Answer::Listing { is_standby });
    assert_eq!(listing().shown(answer(Some(false))), "listed");
    assert_eq!(
        listing().shown(answer(Some(true))),
        format!("fail: {}", standby().message)
    );
    assert_eq!(
        listing().shown(refused(false)),
        "fail: the server could not be asked: no"
    );
    assert!(listing().lines.is_empty());
}

#[test]
fn how_a_lock_is_held_is_said_in_full() {
    let held = |shared, backend, ttl: Option<f64>, has_lease| {
        let ttl = ttl.map(time);
        Line::Held {
            shared,
            backend,
            ttl,
            has_lease,
        }
        .to_string()
    };
    assert_eq!(
        held(false, Some(7), Some(15.0), true),
        "The lock is exclusive, of backend 7, with a lease of 15 s."
    );
    assert_eq!(
        held(true, None, None, false),
        "The lock is shared, of a transaction, since a pooler is in between, without a lease."
    );
    assert_eq!(
        held(true, Some(7), Some(15.0), false),
        "The lock is shared, of backend 7, with TCP keepalive of 15 s in place of a lease, which this server does not \
         have."
    );
}

#[test]
fn what_is_to_be_confirmed_is_not_held_through_a_pooler() {
    let plan = || Plan {
        sync: true,
        ..plan()
    };
    let mut run = Run::connected(plan());
    let shown = run.shown(verdict(Verdict::Pooled));
    assert!(shown.starts_with("fail: --sync takes a session"), "{shown}");
    // Under --verbose it is said whether anybody confirms it.
    for (names, is_said) in [(Some(""), true), (Some("b"), false), (None, false)] {
        let mut run = Run::connected(plan());
        assert_eq!(run.shown(verdict(Verdict::Held(None))), "ask standbys");
        let names = names.map(str::to_owned);
        let order = run.on(Event::Answered(Answer::Standbys(names)));
        assert!(matches!(order, Order::End(Ending::Taken(_))), "{order:?}");
        let said = run.lines.iter().any(|line| line.contains("confirms alone"));
        assert_eq!(said, is_said);
    }
    let mut run = Run::connected(Plan {
        verbose: false,
        ..plan()
    });
    let order = run.on(verdict(Verdict::Held(None)));
    assert!(matches!(order, Order::End(Ending::Taken(_))), "{order:?}");
}
