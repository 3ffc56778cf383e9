//! The options of a server's handshake: what their data says, and the bytes of their answers ("Option types" and
//! "Option reply types" of the specification). What an option leads to is decided in `session`.

use crate::limits::NBD_OPTION_BYTES_MAX;
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::session::Export;

/// Information the client asked for beside the export's size and flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct Infos {
    pub name: bool,
    pub description: bool,
    pub block_size: bool,
}

/// Options that are refused by their head alone, so that their data need not be kept.
pub fn refused_option(head: &OptionHead) -> Option<(u32, &'static str)> {
    match head.option {
        OPT_EXPORT_NAME => None,
        OPT_ABORT | OPT_INFO | OPT_GO if head.length as usize > NBD_OPTION_BYTES_MAX => {
            Some((REP_ERR_TOO_BIG, "the data of this option is longer than this server accepts"))
        }
        OPT_ABORT | OPT_INFO | OPT_GO => None,
        OPT_LIST if head.length != 0 => Some((REP_ERR_INVALID, "this option has no data")),
        OPT_LIST => None,
        OPT_STARTTLS => Some((REP_ERR_UNSUP, "this server does not offer TLS")),
        OPT_STRUCTURED_REPLY => Some((REP_ERR_UNSUP, "this server sends simple replies")),
        _ => Some((REP_ERR_UNSUP, "this server does not know this option")),
    }
}

/// The data of `OPT_GO` and `OPT_INFO`: a name and the information asked for.
pub fn go_data(data: &[u8]) -> Result<(String, Infos), &'static str> {
    if data.len() < 6 {
        return Err("the data of this option is shorter than its fields");
    }
    let name_length = be32(data, 0) as usize;
    if name_length > data.len() - 6 || name_length > STRING_BYTES_MAX {
        return Err("the export name is longer than the option that carries it, or than the protocol allows");
    }
    let count_at = 4 + name_length;
    let infos_at = count_at + 2;
    if data.len() - infos_at != 2 * usize::from(be16(data, count_at)) {
        return Err("the number of information requests disagrees with the length of the option");
    }
    let name = str::from_utf8(&data[4..count_at]).map_err(|_| "the export name is not UTF-8")?.to_owned();
    let mut infos = Infos::default();
    for raw in data[infos_at..].chunks_exact(2) {
        match be16(raw, 0) {
            INFO_NAME => infos.name = true,
            INFO_DESCRIPTION => infos.description = true,
            INFO_BLOCK_SIZE => infos.block_size = true,
            _ => {}
        }
    }
    Ok((name, infos))
}

/// Answers `OPT_GO` or `OPT_INFO`.
pub fn describe(out: &mut Outbox, option: u32, export: &Export, infos: Infos) {
    let mut info = |kind: u16, data: &[&[u8]]| {
        let length: usize = data.iter().map(|part| part.len()).sum();
        out.put(&OptionReplyHead::encode(option, REP_INFO, 2 + length as u32));
        out.put(&kind.to_be_bytes());
        data.iter().for_each(|part| out.put(part));
    };
    info(INFO_EXPORT, &[&export.size.to_be_bytes(), &export.flags().to_be_bytes()]);
    if infos.name {
        info(INFO_NAME, &[clip(&export.name).as_bytes()]);
    }
    if infos.description && !export.description.is_empty() {
        info(INFO_DESCRIPTION, &[clip(&export.description).as_bytes()]);
    }
    if infos.block_size {
        let sizes = [export.block_min, export.block_preferred, export.block_max].map(u32::to_be_bytes);
        info(INFO_BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
    }
    option_reply(out, option, REP_ACK, b"");
}

/// One export in the answer to `OPT_LIST`.
pub fn list_item(out: &mut Outbox, name: &str, description: &str) {
    let (name, description) = (clip(name), clip(description));
    out.put(&OptionReplyHead::encode(OPT_LIST, REP_SERVER, (4 + name.len() + description.len()) as u32));
    out.put(&(name.len() as u32).to_be_bytes());
    out.put(name.as_bytes());
    out.put(description.as_bytes());
}

/// An answer to an option.
pub fn option_reply(out: &mut Outbox, option: u32, reply: u32, data: &[u8]) {
    out.put(&OptionReplyHead::encode(option, reply, data.len() as u32));
    out.put(data);
}

/// As much of a text as a string of the protocol may have.
pub fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}
