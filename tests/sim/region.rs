//! Owns what the shells of the primary and of DR do for their connection to the status table: they open it, ask, hand over
//! what comes back, and give it up when it is silent for too long (`src/nbd/region.rs`).

use std::mem::take;

use farshore::core::ids::{Conn, Epoch, Owner, Ticket};
use farshore::core::machine::{DiskResult, IoFail};
use farshore::limits::LINK_SILENCE_NS;
use farshore::{dr, primary};

use crate::checkers::Verdict;
use crate::cluster::{Event, TableLine, TableTalk, World};
use crate::network::{Delivery, Node, Packet};
use crate::roles::GROUP;

impl World {
    /// The connection of one of the two.
    fn line(&mut self, node: Node) -> &mut TableLine {
        if node == Node::Primary { &mut self.primary_table } else { &mut self.dr_table }
    }

    /// Looks again once a table could have been silent for too long.
    fn watch_line(&mut self, node: Node, conn: Conn) {
        if self.setup.fresh {
            self.after(LINK_SILENCE_NS, Event::Silent { node, conn });
        }
    }

    pub fn open_table(&mut self, node: Node, epoch: Epoch, owner: Owner) {
        self.close_table(node);
        let conn = Conn(self.next_conn);
        self.next_conn += 1;
        let export = if epoch == Epoch(0) { GROUP.to_string() } else { format!("{GROUP}/{epoch}/{:016x}", owner.0) };
        let line = TableLine { conn: Some(conn), export, granted: false, due: 0, heard_ns: self.now_ns };
        self.watch_line(node, conn);
        *self.line(node) = line;
        let listening = self.host(Node::Aux).up;
        self.net.connect(self.now_ns, (node, conn), Node::Aux, listening);
    }

    pub fn close_table(&mut self, node: Node) {
        let line = take(self.line(node));
        if let Some(conn) = line.conn {
            self.net.close(self.now_ns, node, conn);
        }
    }

    pub fn ask_table(&mut self, node: Node, talk: TableTalk) {
        let now_ns = self.now_ns;
        let line = self.line(node);
        if let (Some(conn), true) = (line.conn, line.granted) {
            line.due += 1;
            if line.due == 1 {
                line.heard_ns = now_ns;
                self.watch_line(node, conn);
            }
            self.net.send(self.now_ns, node, conn, Packet::Message(talk));
        } else if let (TableTalk::Read { cookie, .. } | TableTalk::Write { cookie, .. }, true, Node::Dr) =
            (talk, self.setup.fresh, node)
        {
            // DR's shell says at once that there is nobody to ask.
            let run = self.host(node).run;
            self.after(0, Event::Gone { run, ticket: Ticket(cookie) });
        }
    }

    /// What the shell does: a table that has said nothing for long while an answer was due is given up.
    pub fn silent(&mut self, node: Node, conn: Conn) -> Verdict {
        let line = self.line(node);
        if line.conn != Some(conn) || line.granted && line.due == 0 {
            return Ok(());
        }
        let ends_ns = line.heard_ns + LINK_SILENCE_NS;
        if ends_ns > self.now_ns {
            self.at(ends_ns, Event::Silent { node, conn });
            return Ok(());
        }
        self.net.close(self.now_ns, node, conn);
        self.table_answer(node, Delivery::Closed { reason: "silent for too long", alone: true })
    }

    /// What comes back on a connection to the status table.
    pub fn table_answer(&mut self, node: Node, delivery: Delivery<TableTalk>) -> Verdict {
        let now_ns = self.now_ns;
        let line = self.line(node);
        line.heard_ns = now_ns;
        let answer = match delivery {
            Delivery::Up => {
                let (conn, export) = (line.conn.expect("the line that answers"), line.export.clone());
                self.net.send(now_ns, node, conn, Packet::Message(TableTalk::Open { export }));
                return Ok(());
            }
            Delivery::Packet(Packet::Message(TableTalk::Granted { size })) => {
                line.granted = true;
                TableAnswer::Opened { size }
            }
            Delivery::Packet(Packet::Message(TableTalk::Refused { text, fenced })) => {
                let conn = line.conn.take().expect("the line that answers");
                self.net.close(now_ns, node, conn);
                TableAnswer::Failed { reason: text, fenced }
            }
            Delivery::Packet(Packet::Message(TableTalk::Reply { cookie, result })) => {
                line.due = line.due.saturating_sub(1);
                let result = result.map_err(|errno| IoFail::Other(format!("{errno:?}")));
                TableAnswer::Done { ticket: Ticket(cookie), result }
            }
            Delivery::Closed { reason, .. } => {
                let granted = line.granted;
                *line = TableLine::default();
                let reason = reason.to_string();
                if granted { TableAnswer::Closed { reason } } else { TableAnswer::Failed { reason, fenced: false } }
            }
            Delivery::Packet(other) => panic!("not an answer of a table: {other:?}"),
        };
        let fencing = !self.setup.plain_table;
        match node {
            Node::Primary => self.primary_step(match answer {
                TableAnswer::Opened { size } => primary::machine::Input::AuxOpened { size, fencing },
                TableAnswer::Failed { reason, fenced } => primary::machine::Input::AuxFailed { reason, fenced },
                TableAnswer::Done { ticket, result } => primary::machine::Input::AuxDone { ticket, result },
                TableAnswer::Closed { reason } => primary::machine::Input::AuxClosed { reason },
            }),
            _ => self.dr_step(match answer {
                TableAnswer::Opened { size } => dr::machine::Input::AuxOpened { size, fencing },
                TableAnswer::Failed { reason, fenced } => dr::machine::Input::AuxFailed { reason, fenced },
                TableAnswer::Done { ticket, result } => dr::machine::Input::AuxDone { ticket, result },
                TableAnswer::Closed { reason } => dr::machine::Input::AuxClosed { reason },
            }),
        }
    }
}

enum TableAnswer {
    Opened { size: u64 },
    Failed { reason: String, fenced: bool },
    Done { ticket: Ticket, result: DiskResult },
    Closed { reason: String },
}
