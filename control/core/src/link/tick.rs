//! What the links do as time passes: probes, hellos, timeouts, rekey.

use bytes::Bytes;
use weft_abi::Kind;

use super::{
    FORGET_LINK, HELLO_TENTHS, Links, OLD_KEYS, Timer,
    open::Via,
    state::{LinkKey, Proof},
};
use crate::{
    io::{Micros, Output},
    node::{Event, context::Context},
};

/// Control frames after which new keys are due, far below what the counter holds.
const MANY_FRAMES: u32 = 1 << 20;

impl Links {
    pub(crate) fn handle_timeout(&mut self, context: &mut Context<'_>) {
        while let Some(timer) = self.deadlines.pop_due(context.now) {
            match timer {
                Timer::Link(key) => self.tick(context, key),
                Timer::Initiating(index) => self.on_initiating_timer(context, index),
                Timer::Responding(index) => self.on_responding_timer(context, index),
                Timer::Dial(path) => self.dial(context, path),
                Timer::Neighbour(node) => self.forget_neighbour(context, node),
            }
        }
    }

    fn tick(&mut self, context: &mut Context<'_>, key: LinkKey) {
        self.tend_epochs(context, key);
        let now = context.now;
        if self
            .links
            .get(&key)
            .is_some_and(|link| link.next_probe <= now)
        {
            self.tend_probes(context, key);
        }
        if self
            .links
            .get(&key)
            .is_some_and(|link| link.next_hello <= now)
        {
            self.tend_hellos(context, key);
        }
        if let Some(link) = self.links.get_mut(&key)
            && link.rekey_at <= now
        {
            // Tried again soon where it comes to nothing.
            link.rekey_at = now + Micros::from_secs(15);
            if link.alive() && !link.silent {
                self.initiate(context, Via::Link(key));
            }
        }
        self.schedule(key);
    }

    fn tend_epochs(&mut self, context: &mut Context<'_>, key: LinkKey) {
        let now = context.now;
        let Some(link) = self.links.get(&key) else {
            return;
        };
        let due: Vec<_> = link
            .epochs
            .iter()
            .filter(|e| e.third.as_ref().is_some_and(|third| third.due <= now))
            .map(|e| e.number)
            .collect();
        for number in due {
            if !self.repeat_third(context, key, number) {
                continue;
            }
            if self
                .links
                .get(&key)
                .is_some_and(|link| link.epochs.len() == 1)
            {
                self.close_link(context, key, "the neighbour never used the new keys");
                return;
            }
            if let Some(epoch) = self
                .links
                .get_mut(&key)
                .and_then(|l| l.epochs.iter_mut().find(|e| e.number == number))
            {
                epoch.third = None;
                epoch.retire_at = Some(now);
            }
        }
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        // More than this many at once means that rekeys fail half-way again and again.
        while link.epochs.iter().filter(|e| e.retire_at.is_none()).count() > 3 {
            let sending = link.sending;
            match link
                .epochs
                .iter_mut()
                .find(|e| e.retire_at.is_none() && e.number != sending)
            {
                Some(oldest) => oldest.retire_at = Some(now + OLD_KEYS),
                None => break,
            }
        }
        let sending = link.sending;
        let (gone, kept) = std::mem::take(&mut link.epochs)
            .into_iter()
            .partition(|e| e.number != sending && e.retire_at.is_some_and(|at| at <= now));
        link.epochs = kept;
        let gone: Vec<super::state::Epoch> = gone;
        for epoch in gone {
            self.by_slot.remove(&epoch.rx_slot);
            context
                .forwarding
                .retire_next_hop(now, context.out, epoch.next_hop);
            context
                .forwarding
                .retire_slot(now, context.out, epoch.rx_slot);
            context.out.state_changed();
        }
        if let Some(link) = self.links.get_mut(&key) {
            for epoch in link.epochs.iter_mut().filter(|e| e.number == sending) {
                epoch.retire_at = None;
            }
        }
    }

    fn tend_probes(&mut self, context: &mut Context<'_>, key: LinkKey) {
        let timers = &context.config.timers;
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let now = context.now;
        let interval = match (
            link.alive(),
            link.busy || link.peer_busy || now < link.suspect_until,
        ) {
            (false, _) => Micros(timers.probe_idle.0 * 3),
            (true, true) => timers.probe_busy,
            (true, false) => timers.probe_idle,
        };
        // Where this node itself was held up, echoes may wait unread: nothing is concluded from such a round.
        let late = now.since(link.next_probe) > Micros(interval.0 / 2);
        if !link.probes.is_empty() && !late {
            link.unanswered += 1;
            link.echoes_in_row = 0;
        }
        link.probes
            .retain(|sent| now.since(Micros(*sent)) < Micros::from_secs(2));
        let lost = link.unanswered >= link.misses_needed(timers.probe_misses)
            && link.out_up == Some(Proof::Echo);
        let body = link.probe(now);
        link.next_probe = now + interval;
        let next_hop = link.epoch().map(|e| e.next_hop);
        if let Some(next_hop) = next_hop {
            let body = Bytes::copy_from_slice(&body);
            context.out.push(Output::SendLink {
                next_hop,
                kind: Kind::Probe,
                body,
            });
        }
        if lost {
            self.set_out(context, key, None, "its probes are not echoed");
        }
    }

    fn tend_hellos(&mut self, context: &mut Context<'_>, key: LinkKey) {
        let now = context.now;
        let timers = context.config.timers.clone();
        let wait = context.jittered(Micros(timers.hello.0));
        self.send_hello(context, key, false);
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        // Where this node stood still, reports may wait unread, and whoever shares its machine has to catch up as well.
        if now.since(link.next_hello) > Micros(timers.hello.0 / 2) {
            context.out.count("hello_late");
            self.awake_since = now;
        }
        link.next_hello = now + wait;
        let patience = Micros(timers.hello.0 * HELLO_TENTHS / 10);
        let silence = |since: Micros| now.since(since.max(self.awake_since));
        let unreported = link.reported.is_none_or(|(_, at)| silence(at) > patience);
        let echoed = link.last_echo.is_some_and(|at| now.since(at) <= patience);
        let control_silent = silence(link.last_control) > patience;
        let deaf = link.in_up && silence(link.last_arrival) > patience;
        if echoed && link.unanswered == 0 && control_silent && !link.silent {
            link.silent = true;
            let node = link.peer;
            context
                .out
                .event(Event::ControlSilent { node, silent: true });
        }
        let lost_report = link.out_up == Some(Proof::Report) && unreported;
        let silent_too_long = silence(link.last_control) > timers.graceful_restart;
        let dead_too_long = link
            .down_since
            .is_some_and(|since| now.since(since) > FORGET_LINK);
        if silent_too_long || dead_too_long {
            let why = if dead_too_long {
                "nothing came for too long"
            } else {
                "its control plane stayed silent"
            };
            self.close_link(context, key, why);
            return;
        }
        if lost_report && !echoed {
            self.set_out(context, key, None, "the neighbour no longer hears it");
        }
        if deaf {
            self.set_in_down(context, key, "it is silent");
        }
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        if link.epoch().is_some_and(|e| e.frames.sent() > MANY_FRAMES) {
            link.rekey_at = link.rekey_at.min(now);
        }
        if link.in_up {
            let fresh = link.meter.measured(context.config.capacity_kbps);
            if link.advertised.update(now, fresh) {
                self.events.push_back(super::LinkEvent::Advertise);
            }
        }
    }
}
