//! What others have planted in the database: nothing of it is ever called, in whatever mode pglock runs there.

use std::thread;

use nix::sys::signal::Signal;

use crate::support::pgbouncer::Pgbouncer;
use crate::support::pty::{CTRL_Z, Pty};
use crate::support::*;

/// For the role `app`, a schema of its name: an operator of every name for every pair of the types that there are in pglock's
/// SQL and of others, functions of all names and arguments that `pg_catalog` has, types of the names of its types, views of
/// the names of its tables, and casts. All of it ends in functions whose calls the server counts.
const PLANT: &str = r#"
create role app login;
create schema app;
grant usage on schema app to app;
alter role postgres set search_path = pg_catalog;
set local search_path = pg_catalog;
set local check_function_bodies = off;
create function app.checked() returns bool language plpgsql as 'begin return true; end';
create function app.viewed() returns bool language plpgsql as 'begin return true; end';
do $plant$
declare
  types text[] := '{int2,int4,int8,oid,xid,text,name,bool,float8,numeric,interval,timestamptz,timestamp,"char",bit,anyelement}';
  l text; r text; what text; f record;
begin
  foreach l in array types loop
    foreach r in array types loop
      continue when (l = 'anyelement') <> (r = 'anyelement');
      execute format('create function app.op_is(%1$s, %2$s) returns bool language plpgsql as ''begin return null; end''', l, r);
      execute format('create function app.op_of(%1$s, %2$s) returns %1$s language plpgsql as ''begin return null; end''', l, r);
      foreach what in array '{=,<>,<,>,<=,>=,~~,!~~,~~*,!~~*,~,!~,~*,@>,<@,&&,-|-}'::text[] loop
        execute format('create operator app.%s (leftarg = %s, rightarg = %s, function = app.op_is)', what, l, r);
      end loop;
      foreach what in array '{+,-,*,/,%,^,||,>>,<<,&,|,#,->,->>}'::text[] loop
        execute format('create operator app.%s (leftarg = %s, rightarg = %s, function = app.op_of)', what, l, r);
      end loop;
    end loop;
    execute format('create function app.op_of(%1$s) returns %1$s language plpgsql as ''begin return null; end''', l);
    foreach what in array '{+,-,~,@,!!}'::text[] loop
      execute format('create operator app.%s (rightarg = %s, function = app.op_of)', what, l);
    end loop;
  end loop;

  for f in select oid, proname, pg_get_function_arguments(oid) as arguments, pg_get_function_result(oid) as result,
      case when proretset or prorettype = 'void'::regtype or proargmodes::text[] && '{o,t}' then 'begin return; end'
           else 'begin return null; end' end as body
    from pg_proc where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f'
  loop
    begin
      execute format('create function app.%I(%s) returns %s language plpgsql as %L', f.proname, f.arguments, f.result, f.body);
    exception when others then
      -- One that plpgsql cannot have, as with arguments of any type.
      foreach what in array array['', 'anyelement', 'text', 'text, text', 'text, int4', 'text, int8', 'text, text, int8', 'int4, text, int4',
          'variadic text[]'] loop
        begin
          execute format('create function app.%I(%s) returns text language plpgsql as %L', f.proname, what, 'begin return null; end');
        exception when duplicate_function then null; end;
      end loop;
    end;
  end loop;

  foreach what in array '{int int4,integer int4,int2 int2,smallint int2,int4 int4,int8 int8,bigint int8,oid oid,xid xid,text text,name name,
      bool bool,boolean bool,bit bit,varchar varchar,numeric numeric,float8 float8,interval interval,timestamptz timestamptz,record text,
      void text,unknown text}'::text[] loop
    execute format('create domain app.%I as %s check (app.checked())', split_part(what, ' ', 1), split_part(what, ' ', 2));
  end loop;

  foreach what in array '{pg_locks,pg_stat_activity,pg_stat_bgwriter,pg_stat_archiver,pg_stat_wal,pg_database,pg_settings,pg_roles,pg_class,pg_proc,
      pg_type,pg_operator}'::text[] loop
    execute format('create view app.%1$I as select * from pg_catalog.%1$I where app.viewed()', what);
    execute format('grant select on app.%I to public', what);
  end loop;

  create type app.mine as (x int4);
  foreach l in array '{int4,int8,text,name,oid,bool,numeric}'::text[] loop
    execute format('create function app.mine_to_%1$s(app.mine) returns %1$s language plpgsql as ''begin return null; end''', l);
    execute format('create cast (app.mine as %1$s) with function app.mine_to_%1$s(app.mine) as implicit', l);
    execute format('create function app.to_mine(%1$s) returns app.mine language plpgsql as ''begin return null; end''', l);
    execute format('create cast (%1$s as app.mine) with function app.to_mine(%1$s) as implicit', l);
  end loop;
  create function app.op_is(app.mine, app.mine) returns bool language plpgsql as 'begin return null; end';
  foreach what in array '{=,<>,<,>,||,+,-}'::text[] loop
    execute format('create operator app.%s (leftarg = app.mine, rightarg = app.mine, function = app.op_is)', what);
  end loop;
end $plant$
"#;

/// Calls on purpose what was planted, of each kind something, and names what that is.
const CONTROL: &str = "set search_path = app, pg_catalog;
    select 1 - 1, 'a' || 'b', now(), 'x'::text, pg_backend_pid(), concat('a', 'b'); select count(*) from pg_locks";
const CALLED: [&str; 6] = [
    "checked",
    "concat",
    "now",
    "op_of",
    "pg_backend_pid",
    "viewed",
];

/// How a schema comes to be searched before `pg_catalog`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Role,
    User,
    Database,
    Options,
}

fn plant() -> Server {
    let server = Server::builder().conf("track_functions = all").start();
    server.psql(PLANT);
    server
}

/// Has the planted schema searched first.
fn lead(server: &Server, way: Way) {
    match way {
        Way::Role => server.psql("alter role app set search_path = app, pg_catalog"),
        Way::User => server.psql("alter role app set search_path = \"$user\", pg_catalog, public"),
        Way::Database => server.psql("alter database postgres set search_path = app, pg_catalog"),
        Way::Options => String::new(),
    };
}

fn app(pglock: Pglock, way: Way) -> Pglock {
    let pglock = pglock.env("PGLOCK_USER", "app");
    match way {
        Way::Options => pglock.env("PGOPTIONS", "-c search_path=app,pg_catalog"),
        _ => pglock,
    }
}

/// What was called of all that was planted, once no session is left that has not said so.
fn called(server: &Server) -> Vec<String> {
    eventually("all sessions have ended", PATIENCE, || {
        server.clients().is_empty().then_some(())
    });
    let names = server.psql("select distinct funcname from pg_stat_user_functions order by 1");
    names.lines().map(str::to_owned).collect()
}

/// Nothing was called so far, and what is called is counted.
#[track_caller]
fn assert_nothing_called(server: &Server, when: &str) {
    assert_eq!(called(server), [""; 0], "{when}");
    server.psql(CONTROL);
    eventually("the calls are counted", PATIENCE, || {
        (called(server) == CALLED).then_some(())
    });
}

/// Holds, skips, asks who holds, and waits, by all kinds of locks.
fn go_through_the_modes(server: &Server, pglock: &Pglock, pooled: bool) {
    let waits = |running: &Running, count: &str| {
        running.wait_for_line("Obtaining lock");
        eventually("it waits", PATIENCE, || {
            // Behind a pooler there is nothing to see: it comes and goes.
            let waiting = server.psql(
                "select count(*) from pg_locks where locktype = 'advisory' and (not granted or (objid = 0 and objsubid = 2))",
            );
            (pooled || waiting == count).then_some(())
        });
    };
    let named = ["--lockname", "nightly backup"];
    for (lock, holders) in [
        (&["--lockid", "7"][..], 1),
        (&["--lockid", "4294967295", "--fence"], 1),
        (&["--lockid", "7", "--ttl", "0"], 1),
        (&named, 1),
        (&[named[0], named[1], "--fence"], 1),
        (&["--slots", "2"], 2),
        (&["--slots", "2", "--fence"], 2),
        (&[named[0], named[1], "--slots", "2"], 2),
    ] {
        let pglock = || pglock.clone().flags(lock);
        let mut held: Vec<Running> = (0..holders).map(|_| pglock().hold()).collect();
        let skips = pglock().flags(["--verbose", "--conflict-exit-code", "9"]);
        let skips = skips.command(["true"]).run();
        skips.assert_status(9);
        assert!(skips.stderr().contains("Held by "), "{}", skips.report());
        let waiter = pglock().flag("--block").sh("echo mine").spawn();
        waits(&waiter, "1");
        held.remove(0).finish().assert_status(0);
        waiter.wait().assert_status(0).assert_stdout("mine\n");
        for run in held {
            run.finish().assert_status(0);
        }
    }
    for lock in [&["--lockid", "7"][..], &named] {
        let pglock = || pglock.clone().flags(lock);
        let shared = || pglock().flag("--shared");
        let sharer = shared().hold();
        shared().command(["true"]).run().assert_status(0);
        let writer = pglock().flag("--block").command(["true"]).spawn();
        waits(&writer, "1");
        let late = shared().flags(["--wait", "60"]).command(["true"]).spawn();
        waits(&late, "2");
        sharer.finish().assert_status(0);
        writer.wait().assert_status(0);
        late.wait().assert_status(0);
    }
    let holder = pglock.clone().flags(named).hold();
    for flags in [
        &[][..],
        &["--lockid", "7"],
        &named,
        &[named[0], named[1], "--slots", "3"],
        &["--lockid", "7", "--slots", "3"],
    ] {
        let status = pglock.clone().flag("--status").flags(flags).run();
        status.assert_status(0);
    }
    holder.finish().assert_status(0);
}

/// A restart under one who has waited, and at last a newcomer.
fn go_through_a_restart(server: &Server, pglock: &Pglock) {
    let pglock = pglock.clone().flags(["--ttl", "10", "--grace", "1"]);
    let mut session = server.session();
    session.hold(1);
    let holder = pglock
        .clone()
        .flag("--block")
        .open_input()
        .sh("echo the command runs; exec cat")
        .spawn();
    holder.wait_for_line("Obtaining lock");
    session.release(1);
    holder.wait_for_output("the command runs");
    drop(session);
    server.restart(Stop::Fast);
    holder.wait_for_line("The server was restarted; the lock was taken again ");
    let newcomer = pglock.clone().flags(["--wait", "60"]).sh("echo mine");
    let newcomer = newcomer.spawn();
    newcomer.wait_for_line("holding off for ");
    holder.finish().assert_status(0);
    newcomer.wait().assert_status(0).assert_stdout("mine\n");
}

#[test]
fn what_others_have_planted_is_never_called() {
    thread::scope(|scope| {
        for ways in [
            &[Way::Role][..],
            &[Way::Database],
            &[Way::Options, Way::User],
        ] {
            scope.spawn(move || {
                let server = plant();
                for way in ways {
                    lead(&server, *way);
                    go_through_the_modes(&server, &app(Pglock::on(&server), *way), false);
                }
                go_through_a_restart(&server, &app(Pglock::on(&server), ways[0]));
                assert_nothing_called(&server, &format!("{ways:?}"));
            });
        }
    });
}

#[test]
fn what_others_have_planted_is_never_called_behind_a_pooler() {
    thread::scope(|scope| {
        for way in [Way::Role, Way::Database] {
            scope.spawn(move || {
                let server = plant();
                lead(&server, way);
                let retry = "server_login_retry = 1";
                let pooler = Pgbouncer::new(&server, "transaction", 6, &[retry]);
                let pglock = app(pooler.pglock(), way);
                go_through_the_modes(&server, &pglock, true);
                go_through_a_restart(&server, &pglock);
                drop(pooler);
                assert_nothing_called(&server, &format!("{way:?}"));
            });
        }
    });
}

#[test]
fn what_others_have_planted_is_never_called_when_pglock_is_stopped_and_continued() {
    let server = plant();
    lead(&server, Way::Role);
    let mut pty = Pty::new(&server);
    pty.line("PGLOCK_USER=app pglock sh -c 'echo ready; exec cat'");
    pty.expect("ready");
    let pglock = pty.pglock();
    pty.press(CTRL_Z);
    pty.prompt();
    processes::wait_for_state("pglock", pglock, "T");
    pty.line("fg");
    pty.line("still here");
    pty.expect("still here");
    nix::sys::signal::kill(pglock, Signal::SIGTERM).expect("signal pglock");
    pty.prompt();
    drop(pty);
    assert_nothing_called(&server, "^Z");
}
