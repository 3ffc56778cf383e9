//! Logs that are given another size with what is in them: the spool of DR, the disk FIFO of a primary.

use std::time::Duration;

use anyhow::{Result, ensure};
use farshore::cli::demo::load::content;
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::{Plan, Role, Scratch, Site};
use farshore::cluster::status::Status;

use crate::harness::{FAST, LONG, MIB, program};

const PIECE: u64 = 2 * MIB;

struct Big {
    site: Site,
    volume: u64,
    _scratch: Scratch,
}

impl Big {
    /// One volume, running and in sync.
    fn started(volume: u64, primary: &str, dr: &str) -> Result<Big> {
        let scratch = Scratch::new("resize")?;
        let settings = vec![
            ("group", "protect = \"near\"".into()),
            ("primary", primary.into()),
            ("aux", "slots = 65536".into()),
            ("dr", dr.into()),
        ];
        let plan = Plan {
            program: program(),
            dir: scratch.path.clone(),
            volumes: vec![("db".into(), volume)],
            line: FAST,
            settings,
        };
        let mut site = Site::new(plan)?;
        site.start_all()?;
        Ok(Big { site, volume, _scratch: scratch })
    }

    /// The setting of a section, from its next start on.
    fn set(&mut self, section: &str, lines: &str) -> Result<()> {
        for (name, text) in &mut self.site.plan.settings {
            if *name == section {
                *text = lines.into();
            }
        }
        self.site.configure()
    }

    fn write(&self, from: u64, to: u64, seed: u64) -> Result<()> {
        let mut client = self.site.client(Role::Primary, "db")?;
        client.timeout(Some(LONG))?;
        for offset in (from..to).step_by(PIECE as usize) {
            let data = content(seed ^ offset, PIECE);
            client.call(Ask::Write { offset, data: &data, fua: false })?;
        }
        client.close();
        Ok(())
    }

    /// An outage after which a batch of 220 MiB has to cross.
    fn outgrow(&mut self) -> Result<()> {
        self.write(0, 8 * MIB, 1)?;
        self.site.settle(LONG)?;
        self.site.line.cut();
        self.write(0, 220 * MIB, 2)?;
        self.site.line.heal();
        Ok(())
    }

    fn compare(&mut self) -> Result<()> {
        self.site.settle(LONG)?;
        let here = std::fs::read(self.site.backing(Role::Primary, "db"))?;
        let there = std::fs::read(self.site.backing(Role::Dr, "db"))?;
        ensure!(here.len() as u64 == self.volume && here == there, "the sides differ");
        Ok(())
    }
}

#[test]
fn a_batch_larger_than_the_spool_crosses_once_the_spool_was_grown() -> Result<()> {
    const LITTLE: &str = "fifo = { memory = \"4MiB\", disk = 0 }";
    let mut big = Big::started(256 * MIB, LITTLE, "journal = \"12MiB\"\nspool = \"192MiB\"\nspool_max = \"192MiB\"")?;
    let check = big.site.verb(&["check", "--role", "dr"])?;
    ensure!(check.out.contains("\"448MiB\" holds any batch"), "{check:?}");
    big.outgrow()?;
    let stalled = |status: &Status| matches!(status, Status::Dr(dr) if dr.degraded.iter().any(|one| one.what.contains("set [dr] spool to \"448MiB\"")));
    big.site.wait_for(Role::Dr, LONG, "word of what to raise", stalled)?;
    big.site.stop(Role::Dr)?;
    let old = std::fs::read(big.site.path("dr/spool"))?;
    // What a crash before the copy was complete leaves is removed.
    std::fs::write(big.site.path("dr/spool.new"), [7; 5000])?;
    big.set("dr", "journal = \"12MiB\"\nspool = \"448MiB\"")?;
    big.site.start(Role::Dr)?;
    let log = big.site.log(Role::Dr);
    ensure!(log.contains("was resized from 201326592 to 469762048 bytes, with 1"), "with entries: {log}");
    big.compare()?;
    big.site.stop(Role::Dr)?;
    ensure!(std::fs::metadata(big.site.path("dr/spool"))?.len() == 448 * MIB && old.len() as u64 == 192 * MIB);
    let inspect = std::process::Command::new(program()).args(["inspect", "spool"]).arg(big.site.path("dr")).output()?;
    ensure!(inspect.status.success(), "{}", String::from_utf8_lossy(&inspect.stdout));
    // Killed after the superblock named the copy, before the rename.
    std::fs::rename(big.site.path("dr/spool"), big.site.path("dr/spool.new"))?;
    std::fs::write(big.site.path("dr/spool"), old)?;
    big.site.start(Role::Dr)?;
    ensure!(std::fs::metadata(big.site.path("dr/spool"))?.len() == 448 * MIB);
    ensure!(!big.site.path("dr/spool.new").exists());
    big.write(16 * MIB, 32 * MIB, 3)?;
    big.compare()?;
    // Nothing is in it now: it can be made smaller again.
    big.site.stop(Role::Dr)?;
    big.set("dr", "journal = \"12MiB\"\nspool = \"192MiB\"")?;
    big.site.start(Role::Dr)?;
    ensure!(std::fs::metadata(big.site.path("dr/spool"))?.len() == 192 * MIB);
    big.write(32 * MIB, 64 * MIB, 4)?;
    big.compare()
}

#[test]
fn a_batch_larger_than_the_spool_crosses_where_the_spool_grows_and_dr_is_promotable_all_the_time() -> Result<()> {
    let little = "fifo = { memory = \"4MiB\", disk = 0 }\nlink = { bytes_per_second = \"50MiB\" }\ncompress = \"off\"";
    let mut big = Big::started(256 * MIB, little, "journal = \"12MiB\"\nspool = \"192MiB\"")?;
    big.outgrow()?;
    let begun = |status: &Status| matches!(status, Status::Dr(dr) if dr.batch.is_some() && dr.spool_bytes > 64 * MIB);
    big.site.wait_for(Role::Dr, LONG, "a batch of which much is staged", begun)?;
    let (point, cut) = (std::fs::read(big.site.backing(Role::Dr, "db"))?, big.site.dr()?.cut_seq);
    let grown = |status: &Status| matches!(status, Status::Dr(dr) if dr.spool_limit_bytes == 384 * MIB);
    big.site.wait_for(Role::Dr, LONG, "a spool that has grown", grown)?;
    ensure!(
        std::fs::read(big.site.backing(Role::Dr, "db"))? == point && big.site.dr()?.cut_seq == cut,
        "the recovery point stays"
    );
    ensure!(big.site.promote(&["--plan"])?.cut_seq == cut, "and can be promoted");
    // In the middle of it DR dies; then it has what it had.
    big.site.kill(Role::Dr)?;
    big.site.start(Role::Dr)?;
    ensure!(big.site.dr()?.spool_limit_bytes == 384 * MIB, "{:?}", big.site.dr()?);
    big.compare()?;
    let back = |status: &Status| matches!(status, Status::Dr(dr) if dr.spool_limit_bytes == 192 * MIB);
    big.site.wait_for(Role::Dr, LONG, "a spool as it was", back)?;
    ensure!(std::fs::metadata(big.site.path("dr/spool"))?.len() == 192 * MIB);
    big.site.stop(Role::Dr)?;
    let inspect = std::process::Command::new(program()).args(["inspect", "spool"]).arg(big.site.path("dr")).output()?;
    ensure!(inspect.status.success(), "{}", String::from_utf8_lossy(&inspect.stdout));
    // A crash may leave it longer than the superblock names.
    let longer = std::fs::OpenOptions::new().write(true).open(big.site.path("dr/spool"))?;
    longer.set_len(384 * MIB)?;
    let inspect = std::process::Command::new(program()).args(["inspect", "spool"]).arg(big.site.path("dr")).output()?;
    ensure!(inspect.status.success(), "{}", String::from_utf8_lossy(&inspect.stdout));
    big.site.start(Role::Dr)?;
    ensure!(longer.metadata()?.len() == 192 * MIB, "it is cut");
    big.write(16 * MIB, 32 * MIB, 3)?;
    big.compare()
}

#[test]
fn where_a_batch_has_no_room_the_operator_is_asked_before_the_recovery_point_is_given_up() -> Result<()> {
    let mut big = Big::started(
        256 * MIB,
        "fifo = { memory = \"4MiB\", disk = 0 }",
        "journal = \"12MiB\"\nspool = \"192MiB\"\nspool_max = \"192MiB\"",
    )?;
    big.outgrow()?;
    let asks = |status: &Status| matches!(status, Status::Dr(dr) if dr.degraded.iter().any(|one| one.what.contains("farshore recopy")));
    big.site.wait_for(Role::Dr, LONG, "a question", asks)?;
    let refused = big.site.verb(&["recopy"])?;
    ensure!(refused.exit == 3 && refused.errors.contains("--give-up-recovery-point"), "{refused:?}");
    let dr = big.site.dr()?;
    ensure!(dr.synced && big.site.promote(&["--plan"])?.cut_seq == dr.cut_seq, "nothing was done: {dr:?}");
    let done = big.site.verb(&["recopy", "--give-up-recovery-point", "--json"])?;
    ensure!(done.exit == 0 && done.out.contains(&format!("\"cut_seq\":{}", dr.cut_seq)), "{done:?}");
    big.compare()?;
    let dr = big.site.dr()?;
    ensure!(dr.synced && dr.degraded.is_empty(), "{dr:?}");
    big.write(16 * MIB, 32 * MIB, 3)?;
    big.compare()
}

#[test]
fn a_disk_queue_keeps_what_is_in_it_when_its_size_changes() -> Result<()> {
    let fifo = |disk: &str| format!("fifo = {{ memory = \"4MiB\", disk = \"{disk}\" }}");
    let mut big = Big::started(128 * MIB, &fifo("128MiB"), "journal = \"12MiB\"\nspool = \"256MiB\"")?;
    // Somewhere in the log, so that what follows wraps.
    big.write(0, 100 * MIB, 1)?;
    big.site.settle(LONG)?;
    big.site.line.cut();
    big.write(0, 100 * MIB, 2)?;
    let held = big.site.primary()?.fifo_disk_bytes;
    ensure!(held > 64 * MIB, "{held} bytes are in the disk FIFO");
    for (disk, bytes, said) in [("64MiB", 128 * MIB, "stays at"), ("512MiB", 512 * MIB, "was resized from")] {
        big.site.stop(Role::Primary)?;
        std::fs::write(big.site.path("primary/fifo.new"), [7; 5000])?;
        big.set("primary", &fifo(disk))?;
        big.site.start(Role::Primary)?;
        let (status, log) = (big.site.primary()?, big.site.log(Role::Primary));
        ensure!(status.fifo_disk_limit_bytes == bytes, "{disk}: {}", status.fifo_disk_limit_bytes);
        ensure!(
            status.fifo_disk_bytes >= held && log.contains(said),
            "{disk}: {} bytes\n{log}",
            status.fifo_disk_bytes
        );
        ensure!(!big.site.path("primary/fifo.new").exists());
    }
    std::thread::sleep(Duration::from_millis(200));
    big.site.line.heal();
    big.compare()?;
    let log = big.site.log(Role::Dr);
    let batch = log.lines().find(|line| line.contains(" begins") && !line.contains("first sync"));
    ensure!(batch.is_none(), "what was in the FIFO did not cross as a stream: {batch:?}\n{log}");
    big.write(50 * MIB, 128 * MIB, 3)?;
    big.compare()
}
