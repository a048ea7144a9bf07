//! A worker's link to the server that keeps the tickets of its group, and what came of its lookups.
//!
//! Owns the client ([`Remote`]) and which link it uses; the role never hears of that link. Invariants: a lookup that was
//! taken gives its held link an answer, whatever becomes of the server; what the server gave out once is remembered in
//! the process's store, which is asked first, so that a server that gives it out again resumes nobody here.

use std::sync::Arc;

use super::admission::Class;
use super::engine::Engine;
use super::links::Links;
use super::socket::{Lookup, Phase};
use crate::base::time::Time;
use crate::base::wire::{CloseReason, LinkId, LogLine, Role, Security, Sink, Target, Wire};
use crate::tickets::remote::{Answer, Event, Remote};
use crate::tickets::seal::Unsealed;
use crate::tickets::{Binding, Group, Stored, TicketId};

/// The group's server as one worker knows it.
pub(super) struct Member {
    group: Arc<Group>,
    client: Remote,
    /// Some from a dial to its end.
    link: Option<LinkId>,
}

impl Member {
    pub(super) fn new(group: Arc<Group>, worker: usize) -> Member {
        let seed = group.seed.wrapping_add(worker as u64);
        Member { client: Remote::new(group.settings.clone(), seed), group, link: None }
    }

    /// When it has something to do, if nothing else happens.
    pub(super) fn due(&self) -> Option<Time> {
        self.client.due()
    }
}

impl<L: Role<Links>> Engine<L> {
    /// Whether a link is the one to the group's server: nothing of it concerns the role.
    pub(super) fn is_to_group(&self, key: LinkId) -> bool {
        self.member.as_ref().is_some_and(|member| member.link == Some(key))
    }

    // ---- what is asked ----

    /// Asks the group for a ticket that this process does not have. True: an answer follows, at the deadline at the latest.
    pub(super) fn ask_group(&mut self, key: LinkId, id: &TicketId) -> bool {
        let Some(member) = self.member.as_mut() else { return false };
        let is_taken = member.client.lookup(self.now, key, id);
        if !is_taken {
            self.links.counters.ticket_lookups_down += 1;
            self.give_up(id);
        }
        self.move_group();
        is_taken
    }

    /// Gives the group a ticket; false when it stays here.
    pub(super) fn store_in_group(&mut self, id: &TicketId, binding: Binding, value: &[u8]) -> bool {
        let Some(member) = self.member.as_mut().filter(|member| member.client.is_up()) else { return false };
        let Some(sealed) = member.group.keys.seal(id, binding, value) else { return false };
        let is_taken = member.client.store(self.now, id, &sealed);
        self.links.counters.tickets_shared += u64::from(is_taken);
        self.move_group();
        is_taken
    }

    // ---- the link ----

    /// The link to the server stands.
    pub(super) fn group_connected(&mut self) {
        if let Some(member) = self.member.as_mut() {
            member.client.connected(self.now);
        }
        self.move_group();
    }

    /// The server said something.
    pub(super) fn group_said(&mut self, bytes: &[u8]) {
        if let Some(member) = self.member.as_mut() {
            member.client.received(self.now, bytes);
        }
        self.move_group();
    }

    /// The link is gone, and not because the client wanted it.
    pub(super) fn group_lost(&mut self) {
        if let Some(member) = self.member.as_mut() {
            member.link = None;
            member.client.broken(self.now);
        }
        self.move_group();
    }

    /// Does what is due.
    pub(super) fn tick_group(&mut self) {
        if let Some(member) = self.member.as_mut() {
            member.client.tick(self.now);
            self.move_group();
        }
    }

    /// Uses new keys, and another server if it is another. A worker that is `draining` begins with no server: the link
    /// would only have to be ended with the others.
    pub(super) fn join_group(&mut self, group: Arc<Group>, draining: bool) {
        if let Some(member) = self.member.as_mut().filter(|member| member.group.settings == group.settings) {
            member.group = group;
            return;
        }
        if draining {
            return;
        }
        let former = self.leave_group();
        let member = self.member.insert(Member::new(group, self.settings.index));
        if let Some(former) = former {
            member.client.inherit(former.client);
        }
    }

    /// Closes the link to the server for good. Returns what there was of it.
    pub(super) fn leave_group(&mut self) -> Option<Member> {
        if let Some(link) = self.member.as_ref().and_then(|member| member.link) {
            self.kill(link, CloseReason::Done, false);
        }
        self.member.take()
    }

    /// Whether the link to the server is all that is left.
    pub(super) fn has_group_alone(&self) -> bool {
        let link = self.member.as_ref().and_then(|member| member.link);
        self.links.slab.len() == 1 && link.is_some_and(|link| self.links.slab.get(link).is_some())
    }

    /// Carries out what the client wants, until nothing is left.
    fn move_group(&mut self) {
        while let Some(event) = self.member.as_mut().and_then(|member| member.client.event()) {
            match event {
                Event::Dial => self.dial_group(),
                Event::Close => {
                    if let Some(link) = self.member.as_mut().and_then(|member| member.link.take()) {
                        self.kill(link, CloseReason::Aborted, true);
                    }
                }
                Event::Answer(asker, answer) => self.looked_up(asker, answer),
                Event::Up => self.log_group("ticket server up", ""),
                Event::Lost(fault) => {
                    self.links.counters.ticket_server_lost += 1;
                    self.log_group("ticket server lost", fault.as_str());
                }
            }
        }
        let Some(member) = self.member.as_mut().filter(|member| member.client.has_output()) else { return };
        let Some(link) = member.link.and_then(|link| self.links.touch(link)) else { return };
        let mut output = Vec::new();
        member.client.drain(&mut output);
        link.lane.put(&output);
    }

    fn dial_group(&mut self) {
        let Some(member) = self.member.as_mut() else { return };
        let target = Target { address: member.group.settings.server, security: Security::Plain };
        let key = self.links.dial(target, 0);
        // The role did not ask for this link, and is told neither its beginning nor its end.
        self.links.slab.get_mut(key).expect("just made").told_closed = true;
        member.link = Some(key);
    }

    fn log_group(&mut self, what: &'static str, detail: &'static str) {
        let peer = self.member.as_ref().map(|member| member.group.settings.server);
        self.links.log(LogLine { what, link: None, peer, code: 0, detail });
    }

    // ---- what comes of lookups ----

    /// A lookup has ended: its link, if it still waits, gets in the queue.
    fn looked_up(&mut self, key: LinkId, answer: Answer) {
        let counters = &mut self.links.counters;
        let sealed = match answer {
            Answer::Hit(sealed) => Some(sealed),
            Answer::Miss => {
                counters.ticket_lookups_miss += 1;
                None
            }
            Answer::Late(id) => {
                counters.ticket_lookups_late += 1;
                self.give_up(&id);
                None
            }
            Answer::Down(id) => {
                counters.ticket_lookups_down += 1;
                self.give_up(&id);
                None
            }
        };
        let value = sealed.and_then(|sealed| self.unseal(key, &sealed));
        let Some(link) = self.links.slab.get_mut(key).filter(|link| link.phase == Phase::Held) else { return };
        let Some(setup) = link.setup.as_mut() else { return };
        let class = if value.is_some() { Class::Resuming } else { Class::Full };
        setup.lookup = value.map_or(Lookup::None, Lookup::Fetched);
        self.enqueue(class, key);
    }

    /// The value of a held link's ticket. The server's word counts for nothing: it opens for this ticket, or it is none.
    fn unseal(&mut self, key: LinkId, sealed: &[u8]) -> Option<Unsealed> {
        let link = self.links.slab.get(key).filter(|link| link.phase == Phase::Held);
        let id = link.and_then(|link| link.lane.session.as_ref()?.hello()?.ticket);
        let binding = link.and_then(|link| link.setup.as_ref()).map(|setup| setup.binding);
        // Its client has gone meanwhile: the ticket is spent all the same.
        let (id, binding) = (id?, binding?);
        let opened = self.member.as_ref()?.group.keys.open(&id, binding, sealed);
        if opened.is_ok() && self.spend(&id) {
            self.links.counters.ticket_lookups_hit += 1;
            return opened.ok();
        }
        self.links.counters.ticket_lookups_bad += 1;
        None
    }

    /// Remembers a ticket of which the server did not say whether it has it. Its client goes on without it and sends again
    /// what it had sent early: a copy of that first flight must find nothing here. The client of the server sees to it
    /// that there is soon nothing there either.
    fn give_up(&mut self, id: &TicketId) {
        let stored = self.shared.tickets.as_ref().map(|store| store.spend(self.now, id));
        self.links.counters.tickets_evicted += u64::from(stored == Some(Stored::Evicting));
    }

    /// Remembers a ticket that the server gave out, so that no worker of this process takes it from there again. False
    /// when one has: the server gave it out twice.
    fn spend(&mut self, id: &TicketId) -> bool {
        let Some(store) = &self.shared.tickets else { return false };
        let counters = &mut self.links.counters;
        match store.spend(self.now, id) {
            Stored::Kept => true,
            Stored::Evicting => {
                counters.tickets_evicted += 1;
                true
            }
            Stored::TooLong | Stored::Refused => {
                counters.tickets_used += 1;
                false
            }
        }
    }
}
