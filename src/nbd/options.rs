//! The options of a server's handshake: what their data says, and the bytes of their answers ("Option types" and
//! "Option reply types" of the specification). What an option leads to is decided in `handshake`.

use crate::limits::NBD_OPTION_BYTES_MAX;
use crate::nbd::export::Export;
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::reply::Style;

/// Information the client asked for beside the export's size and flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Infos {
    pub name: bool,
    pub description: bool,
    pub block_size: bool,
}

/// Options that are refused by their head alone, so that their data need not be kept. `style`: what has been
/// negotiated so far.
#[must_use]
pub fn refused_option(head: &OptionHead, style: Style) -> Option<(u32, &'static str)> {
    let long = head.length as usize > NBD_OPTION_BYTES_MAX;
    match head.option {
        // Whatever data comes with it is ignored.
        OPT_EXPORT_NAME | OPT_ABORT => None,
        OPT_LIST | OPT_STARTTLS | OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS if head.length != 0 => {
            Some((REP_ERR_INVALID, "this option has no data"))
        }
        OPT_STRUCTURED_REPLY if style == Style::Extended => {
            Some((REP_ERR_EXT_HEADER_REQD, "extended headers are in force: there is no way back to structured replies"))
        }
        OPT_STRUCTURED_REPLY if style == Style::Structured => {
            Some((REP_ERR_INVALID, "structured replies have been negotiated already"))
        }
        OPT_EXTENDED_HEADERS if style == Style::Extended => {
            Some((REP_ERR_INVALID, "extended headers have been negotiated already"))
        }
        OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT if style == Style::Simple => {
            Some((REP_ERR_INVALID, "metadata contexts need structured replies or extended headers first"))
        }
        OPT_INFO | OPT_GO | OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT if long => {
            Some((REP_ERR_TOO_BIG, "the data of this option is longer than this server accepts"))
        }
        OPT_LIST | OPT_STARTTLS | OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => None,
        OPT_INFO | OPT_GO | OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => None,
        _ => Some((REP_ERR_UNSUP, "this server does not know this option")),
    }
}

/// The data of `OPT_GO` and `OPT_INFO`: a name and the information asked for.
///
/// # Errors
/// What is malformed.
pub fn go_data(data: &[u8]) -> Result<(String, Infos), &'static str> {
    if data.len() < 6 {
        return Err("the data of this option is shorter than its fields");
    }
    let name_length = be32(data, 0) as usize;
    if name_length > data.len() - 6 {
        return Err("the export name is longer than the option that carries it");
    }
    let count_at = 4 + name_length;
    let infos_at = count_at + 2;
    if data.len() - infos_at != 2 * usize::from(be16(data, count_at)) {
        return Err("the number of information requests disagrees with the length of the option");
    }
    let name = text(&data[4..count_at])?.to_owned();
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

/// A string of the protocol ("Conventions"): UTF-8, without NUL, of at most 4096 bytes.
///
/// # Errors
/// Which of these it is not.
pub fn text(raw: &[u8]) -> Result<&str, &'static str> {
    if raw.len() > STRING_BYTES_MAX {
        return Err("a string is longer than the 4096 bytes that the protocol allows");
    }
    let text = str::from_utf8(raw).map_err(|_| "a string is not UTF-8")?;
    if text.contains('\0') { Err("a string contains NUL") } else { Ok(text) }
}

/// Describes an export in the answer to `OPT_GO` or `OPT_INFO`; the end of the answer is the caller's.
pub fn describe(out: &mut Outbox, option: u32, export: &Export, flags: u16, infos: Infos) {
    info(out, option, INFO_EXPORT, &[&export.size.to_be_bytes(), &flags.to_be_bytes()]);
    if infos.name {
        info(out, option, INFO_NAME, &[clip(&export.name).as_bytes()]);
    }
    if infos.description && !export.description.is_empty() {
        info(out, option, INFO_DESCRIPTION, &[clip(&export.description).as_bytes()]);
    }
    if infos.block_size {
        block_size(out, option, export);
    }
}

/// The size constraints of an export.
pub fn block_size(out: &mut Outbox, option: u32, export: &Export) {
    let sizes = [export.block_min, export.block_preferred, export.block_max].map(u32::to_be_bytes);
    info(out, option, INFO_BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
}

fn info(out: &mut Outbox, option: u32, kind: u16, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    out.put(&OptionReplyHead::encode(option, REP_INFO, 2 + length as u32));
    out.put(&kind.to_be_bytes());
    data.iter().for_each(|part| out.put(part));
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
#[must_use]
pub fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}
