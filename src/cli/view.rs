//! Status for people: what they ask first stands first.

use std::io::{Result, Write};

use crate::cluster::size::human_size;
use crate::cluster::status::{
    AuxStatus, BatchStatus, CertificateStatus, Degraded, DrStatus, LinkStatus, PrimaryStatus, Status, VerifyStatus,
    VolumeStatus,
};

/// Prints one role.
pub fn status(status: &Status, out: &mut dyn Write) -> Result<()> {
    match status {
        Status::Primary(primary) => self::primary(primary, out),
        Status::Dr(dr) => self::dr(dr, out),
        Status::Aux(aux) => self::aux(aux, out),
    }
}

fn primary(s: &PrimaryStatus, out: &mut dyn Write) -> Result<()> {
    head(&s.group, "primary", s.epoch.0, out)?;
    if let Some(reason) = &s.fenced {
        row("FENCED", &format!("{reason}; writes are refused"), out)?;
    }
    if let Some(reason) = &s.frozen {
        row("FROZEN", &format!("writes wait: {reason}"), out)?;
    }
    if let Some(reason) = &s.paced {
        row("PACED", &format!("writes wait for room: {reason}"), out)?;
    }
    degraded(&s.degraded, out)?;
    lag(s.lag_writes, s.lag_bytes, s.lag_seconds, s.tail_seq.0, s.cut_seq.0, out)?;
    let asked = format!("{}, ack {}, require {}", s.protect, s.ack, s.require);
    row("protect", &if s.mode == s.protect { asked } else { format!("{asked}; IN FORCE: {}", s.mode) }, out)?;
    if let Some(l) = &s.listing {
        let (listed, total) = (human_size(l.listed_bytes), human_size(l.total_bytes));
        row("listing", &format!("which parts of the volumes have storage: {listed} of {total} looked at"), out)?;
    }
    batch(s.batch.as_ref(), true, out)?;
    verify(s.verify.as_ref(), out)?;
    let fifo = format!(
        "{} of {} in memory, {} of {} on disk; when full: {}{}",
        human_size(s.fifo_memory_bytes),
        human_size(s.fifo_memory_limit_bytes),
        human_size(s.fifo_disk_bytes),
        human_size(s.fifo_disk_limit_bytes),
        s.policy,
        match s.fifo_full_in_seconds {
            _ if s.overflow => " (FULL NOW)".into(),
            Some(left) => format!("; full in {} at the rate of the last minute", duration(left)),
            None => String::new(),
        }
    );
    row("fifo", &fifo, out)?;
    if let Some(most) = s.lag_max {
        let writes = most.writes.map(|writes| format!("{writes} writes"));
        let bytes = most.bytes.map(human_size);
        let seconds = most.seconds.map(|seconds| duration(seconds as f64));
        let parts: Vec<String> = [writes, bytes, seconds].into_iter().flatten().collect();
        row("lag max", &format!("{}: writes wait rather than exceed it", parts.join(", ")), out)?;
    }
    row("table", &format!("{} of {} slots in use", s.table_slots_used, s.table_slots), out)?;
    links(&s.links, out)?;
    certificate(s.certificate.as_ref(), out)?;
    volumes(&s.volumes, out)?;
    let served = human_size(s.acknowledged_bytes);
    let text = format!("{} acknowledged ({served}), {} waiting", s.acknowledged_writes, s.inflight_writes);
    row("writes", &text, out)
}

fn dr(s: &DrStatus, out: &mut dyn Write) -> Result<()> {
    head(&s.group, "dr", s.epoch.0, out)?;
    if let Some(step) = &s.promotion {
        row("promote", step, out)?;
    }
    degraded(&s.degraded, out)?;
    if s.synced {
        let can = match &s.holds_back {
            Some(held) => format!("a promotion is REFUSED until volume {} has room (see DEGRADED)", held.volume),
            None => "can be promoted".into(),
        };
        row("recovery", &format!("point at seq {}; {can}", s.cut_seq), out)?;
    } else {
        row("recovery", "NO RECOVERY POINT YET: the first sync is not complete", out)?;
    }
    lag(s.lag_writes, s.lag_bytes, s.lag_seconds, s.tail_seq.0, s.cut_seq.0, out)?;
    row("waiting", &format!("{} writes arrived early, {} are missing", s.pending_writes, s.missing_writes), out)?;
    batch(s.batch.as_ref(), false, out)?;
    let text =
        format!("seq {}, {} of {}", s.journal_seq, human_size(s.journal_bytes), human_size(s.journal_limit_bytes));
    row("journal", &text, out)?;
    row("spool", &format!("{} of {}", human_size(s.spool_bytes), human_size(s.spool_limit_bytes)), out)?;
    row("applied", &format!("seq {} (durable: {})", s.applied_seq, s.checkpoint_seq), out)?;
    links(&s.links, out)?;
    certificate(s.certificate.as_ref(), out)?;
    volumes(&s.volumes, out)
}

fn aux(s: &AuxStatus, out: &mut dyn Write) -> Result<()> {
    head(&s.group, "aux", s.epoch.0, out)?;
    degraded(&s.degraded, out)?;
    row(
        "table",
        &format!("{}; {} of {} writes", human_size(s.table_bytes), human_size(s.written_bytes), s.writes),
        out,
    )?;
    if s.fenced > 0 {
        row("fenced", &format!("{} refused because a newer epoch is in force", s.fenced), out)?;
    }
    links(&s.links, out)?;
    certificate(s.certificate.as_ref(), out)
}

fn head(group: &str, role: &str, epoch: u32, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{group} · {role} · epoch {epoch}")
}

fn row(label: &str, text: &str, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "  {label:<9} {text}")
}

fn lag(writes: u64, bytes: u64, seconds: f64, tail: u64, cut: u64, out: &mut dyn Write) -> Result<()> {
    let text = if writes == 0 && bytes == 0 {
        format!("none (tail {tail}, cut {cut})")
    } else {
        format!("{writes} writes, {}, {} (tail {tail}, cut {cut})", human_size(bytes), duration(seconds))
    };
    row("lag", &text, out)
}

fn degraded(list: &[Degraded], out: &mut dyn Write) -> Result<()> {
    for one in list {
        row("DEGRADED", &format!("{}, since {} ({})", one.what, one.since, duration(one.seconds)), out)?;
    }
    Ok(())
}

fn verify(verify: Option<&VerifyStatus>, out: &mut dyn Write) -> Result<()> {
    let Some(v) = verify else { return Ok(()) };
    let running = v.running.as_ref().map(|it| {
        let (checked, total) = (human_size(it.checked_bytes), human_size(it.total_bytes));
        let waits = it.waits_for.as_ref().map_or(String::new(), |what| format!("; waits: {what}"));
        format!("{}: {checked} of {total}{waits}", it.phase)
    });
    let last = v.last.as_ref().zip(v.last_age_seconds).map(|(it, age)| {
        let found = match (it.equal, it.different_bytes) {
            (true, 0) => "equal".to_owned(),
            (true, different) => format!("{} repaired", human_size(different)),
            (false, different) => format!("{} DIFFER", human_size(different)),
        };
        format!("last {} ago: {found}", duration(age))
    });
    let parts: Vec<String> = running.into_iter().chain(last).collect();
    row("verify", &parts.join("; "), out)
}

/// `reckons`: it comes from the side that reckons how long the rest takes.
fn batch(batch: Option<&BatchStatus>, reckons: bool, out: &mut dyn Write) -> Result<()> {
    let Some(b) = batch else { return Ok(()) };
    let total = human_size(b.total_bytes);
    let copied = match b.remaining_bytes {
        Some(left) => format!("{} of {total} copied", human_size(b.total_bytes.saturating_sub(left))),
        None => format!("{total} copied, its end is not here yet"),
    };
    let spared = match b.spared_bytes {
        Some(bytes) if bytes > 0 => format!(", {} of that was there already", human_size(bytes)),
        _ => String::new(),
    };
    let rest = match b.remaining_seconds {
        Some(seconds) => format!(", consistent again in about {}", duration(seconds)),
        None if reckons => ", too little crosses at present to say how long the rest takes".into(),
        None => String::new(),
    };
    let text = format!("{}: {copied}{spared}{rest}", b.reason);
    row("batch", &text, out)
}

fn links(links: &[LinkStatus], out: &mut dyn Write) -> Result<()> {
    for link in links {
        let mut text = format!("{:<7} {} {}", link.peer, link.address, link.state);
        text.push_str(&format!(" for {}", duration(link.seconds)));
        if let Some(rtt) = link.rtt_seconds {
            text.push_str(&format!(", round trip {:.1} ms", rtt * 1e3));
        }
        if link.streams > 0 {
            text.push_str(&format!(", {} streams", link.streams));
        }
        for path in &link.paths {
            text.push_str(&format!(", {} {}", path.address, if path.state == "up" { "used" } else { "out of order" }));
        }
        if let Some(limit) = link.limit_bytes_per_second {
            text.push_str(&format!(", at most {} a second", human_size(limit)));
        }
        for (bytes, way) in [(link.sent_bytes, "out"), (link.received_bytes, "in")] {
            if bytes > 0 {
                text.push_str(&format!(", {} {way}", human_size(bytes)));
            }
        }
        if link.compression_saved_bytes > 0 {
            text.push_str(&format!(" ({} saved by compression)", human_size(link.compression_saved_bytes)));
        }
        if let Some(reason) = &link.reason {
            text.push_str(&format!(": {reason}"));
        }
        row("link", &text, out)?;
    }
    Ok(())
}

fn certificate(certificate: Option<&CertificateStatus>, out: &mut dyn Write) -> Result<()> {
    let Some(c) = certificate else { return Ok(()) };
    let left =
        if c.remaining_seconds < 0.0 { "EXPIRED".into() } else { format!("{} left", duration(c.remaining_seconds)) };
    row("tls", &format!("{}, until {} ({left})", c.path, c.expires), out)
}

fn volumes(volumes: &[VolumeStatus], out: &mut dyn Write) -> Result<()> {
    for volume in volumes {
        let clients = match volume.clients {
            1 => "1 client".to_owned(),
            n => format!("{n} clients"),
        };
        row("volume", &format!("{} {}, {clients}", volume.name, human_size(volume.size_bytes)), out)?;
    }
    Ok(())
}

/// A duration for people: `0.31 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`.
pub fn duration(seconds: f64) -> String {
    // Saturating: a clock that went backwards is shown as 0.
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{:.2} s", seconds.max(0.0)),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Epoch, Seq};

    fn shown(status: &Status) -> String {
        let mut out = Vec::new();
        super::status(status, &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn durations_are_short() {
        for (seconds, text) in
            [(0.314, "0.31 s"), (-1.0, "0.00 s"), (42.9, "42 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min")]
        {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(356_400.0), "4 d 3 h");
    }

    #[test]
    fn a_primary_in_trouble_says_so_first() {
        let primary = PrimaryStatus {
            group: "orders".into(),
            epoch: Epoch(3),
            tail_seq: Seq(4720),
            cut_seq: Seq(4700),
            lag_writes: 20,
            lag_bytes: 81920,
            lag_seconds: 1.5,
            protect: "order".into(),
            mode: "near".into(),
            policy: "coalesce".into(),
            overflow: true,
            frozen: Some("both peers are out of reach".into()),
            degraded: vec![Degraded::new("dr is out of reach", 0, 61_000_000_000)],
            links: vec![LinkStatus {
                peer: "dr".into(),
                address: "c:10830".into(),
                state: "down".into(),
                reason: Some("connection refused".into()),
                rtt_seconds: Some(0.0201),
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = shown(&Status::Primary(Box::new(primary)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "orders · primary · epoch 3");
        assert_eq!(lines[1], "  FROZEN    writes wait: both peers are out of reach");
        assert!(lines[2].starts_with("  DEGRADED  dr is out of reach, since 1970-"), "{text}");
        assert!(lines[2].ends_with("(1 min 1 s)"), "{text}");
        assert_eq!(lines[3], "  lag       20 writes, 80 KiB, 1.50 s (tail 4720, cut 4700)");
        for part in ["IN FORCE: near", "coalesce (FULL NOW)", "round trip 20.1 ms", ": connection refused"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_dr_without_a_recovery_point_says_so() {
        let text = shown(&Status::Dr(Box::default()));
        assert!(text.contains("NO RECOVERY POINT YET"), "{text}");
        let text = shown(&Status::Dr(Box::new(DrStatus { synced: true, ..Default::default() })));
        assert!(text.contains("can be promoted") && text.contains("lag       none"), "{text}");
    }

    #[test]
    fn an_auxiliary_names_its_epoch_and_whom_it_refused() {
        let aux = AuxStatus { group: "g".into(), epoch: Epoch(2), fenced: 4, ..Default::default() };
        let text = shown(&Status::Aux(Box::new(aux)));
        assert!(text.starts_with("g · aux · epoch 2\n") && text.contains("4 refused"), "{text}");
    }
}
