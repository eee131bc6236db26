#!/usr/bin/env python
"""From raw pictures to a folder that is ready for training: cropped, split, mirrored, captioned.

    python examples/prepare.py raw_pictures my_pictures --size 512
    python examples/prepare.py raw_pictures my_pictures --size 768x512 --split --focus --flip
    python examples/prepare.py raw_pictures my_pictures --auto_size --caption blip
    python examples/prepare.py raw_pictures my_pictures --caption tagger --exclude_tags "text, watermark" --escape_brackets

The pictures that it reads are never changed. What cannot be used is named and left out. A sheet of before and after is
written beside the new folder. It can be stopped at any time; to go on, run the same command again.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

from tqdm.auto import tqdm

from examples.preparation.captions import combine, load_captioners, needs_captions
from examples.preparation.cutting import Done, Job, is_small, prepare_picture, recorded_view, small_view
from examples.preparation.focus import NO_FACES, can_find_faces
from examples.preparation.geometry import enlargement
from examples.preparation.options import named, parse_arguments, recorded
from examples.preparation.record import Names, Record, output_names, printable
from examples.preparation.sheet import write_sheet
from hypernet.cli.script import run_script
from hypernet.data.captions import caption_from_name, read_text
from hypernet.data.image_io import map_in_threads
from hypernet.data.image_source import ImageSource, open_image_folder
from hypernet.data.near_duplicates import find_near_duplicates
from hypernet.utils.atomic_files import atomic_write, check_writable
from hypernet.utils.errors import UserError

MOST_TOLD = 12  # of the pictures that are too small


def open_pictures(args) -> ImageSource:
    """SRC as the trainer reads it. Raises: UserError if there is no picture in it, or DST can be reached from within."""
    source = open_image_folder(args, "SRC")
    folders = {Path(image["path"]).parent for image in source.images["image"][:]}
    inside = [folder for folder in sorted(folders) if folder.resolve().is_relative_to(args.DST.resolve())]
    if inside:
        raise UserError(f"DST {args.DST}: {inside[0]} in SRC links to it; name another folder")
    return source


def open_record(args) -> Record:
    """What was made in DST before. Raises: UserError if it was made with other options, or DST cannot be written."""
    try:
        check_writable(args.DST)
    except OSError as error:
        raise UserError(f"DST {args.DST}: it cannot be written ({error.strerror})") from None
    record = Record(args.DST)
    foreign = record.foreign_file()
    if foreign is not None:
        raise UserError(f"DST {args.DST}: it is no folder of pictures, {foreign.name} is in it; name a new folder")
    differing = record.differences(recorded(args))
    if differing and not args.overwrite:
        names = ", ".join(f"{named(name)} ({record.options.get(name)} then)" for name in differing)
        raise UserError(f"DST {args.DST}: it was made with other options: {names}; name another folder, or --overwrite")
    return record


def relative_paths(args, source: ImageSource) -> list[str]:
    """Where each picture lies in SRC, with slashes."""
    return [Path(image["path"]).relative_to(args.SRC).as_posix() for image in source.images["image"][:]]


def written_text(source: ImageSource, row: int) -> str | None:
    """The caption of a picture that somebody wrote; None if its name is all there is."""
    return source.captions[row][0] if source.written[row] else None


def load_asked(args, source: ImageSource, record: Record) -> list:
    """The captioners, if there is a picture for which they are asked. Raises: UserError, as `load_captioners`."""
    for row, name in enumerate(relative_paths(args, source)):
        is_new = args.overwrite or not record.is_done(name)
        if is_new and needs_captions(written_text(source, row), args.existing_caption):
            return load_captioners(args)
    return []


def plan(args, source: ImageSource, record: Record) -> tuple[list[Job], dict[str, str]]:
    """(a job for every picture, {those that cannot get a name: why})."""
    names, jobs, reasons, stamps = Names(record, args.split, args.flip), [], {}, source.stamps()
    for row, name in enumerate(relative_paths(args, source)):
        try:
            base = names.base(name)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        name_text = caption_from_name(Path(name).stem, args.filename_word_regex, args.filename_join_string)
        stamp = "/".join(stamps[row].rsplit("/", 2)[1:])  # its size and time
        jobs.append(Job(row, name, base, stamp, written_text(source, row), name_text))
    return jobs, reasons


# --- Doing it


def run_jobs(args, source: ImageSource, record: Record, jobs: list[Job], captioners: list) -> dict[str, str]:
    """Prepare the pictures; {those that were left out: why}."""
    reasons, asks = {}, any(captioner is not None for captioner in captioners)

    def prepare(job):
        return prepare_picture(job, source, args, asks and needs_captions(job.text, args.existing_caption))

    with contextlib.closing(map_in_threads(prepare, jobs)) as finished:  # closed, it begins no other one
        for done in tqdm(finished, total=len(jobs), desc="Preparing pictures", disable=not jobs):
            if done.reason:
                reasons[done.job.source] = done.reason
                continue
            done.entry["files"] += write_texts(args, done, captioners)
            record.append(done.entry)
    return reasons


def write_texts(args, done: Done, captioners: list) -> list[str]:
    """The texts beside a picture's parts, but for those that are there already; their names.

    None is written where the trainer, by the new file's name, comes to the same caption.
    """
    stems = output_names(done.job.base, len(done.entry["boxes"]), args.flip)
    copies, names = 2 if args.flip else 1, []
    for i, stem in enumerate(stems):
        path = args.DST / f"{stem}.txt"
        if i % copies == 0:  # a mirrored copy has the same one
            text = read_text(path).strip() if path.exists() else caption_part(args, done, captioners, i // copies)
        if text is None and done.job.name_text != caption_from_name(Path(stem).name):
            text = done.job.name_text
        if path.exists() or text is not None:
            names.append(f"{stem}.txt")
        if not path.exists() and text is not None:
            with atomic_write(path) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    return names


def caption_part(args, done: Done, captioners: list, part: int) -> str | None:
    """The caption of a part of a picture; None if its file's name is all there is."""
    job, generated = done.job, []
    if captioners and needs_captions(job.text, args.existing_caption):
        for captioner in captioners:
            generated.append(job.name_text if captioner is None else captioner(done.parts[part]))
    return combine(job.text, generated, args.existing_caption)


def find_copies(args, source: ImageSource, record: Record, jobs: list[Job]) -> list[tuple[Job, Job]]:
    """(the one to leave out, the one to keep) of pictures that are the same: kept is what was made before, or is larger."""
    pending = [job for job in jobs if not record.is_done(job.source)] if args.skip_duplicates else []
    seen = {job.source: recorded_view(record.entries[job.source]) for job in jobs if record.is_done(job.source)}
    with contextlib.closing(map_in_threads(lambda job: (job, small_view(job, source, args.background)), pending)) as views:
        for job, view in tqdm(views, total=len(pending), desc="Comparing pictures", disable=not pending):
            if view:
                seen[job.source] = view
    known = [job for job in jobs if job.source in seen]
    known.sort(key=lambda job: (not record.is_done(job.source), -seen[job.source][1] * seen[job.source][2]))
    views = [seen[job.source] for job in known]
    pairs = find_near_duplicates([view[0] for view in views], [view[1] / view[2] for view in views], args.same_threshold)
    return [(known[later], known[earlier]) for later, earlier in pairs]


# --- Telling


def say_before(args, source: ImageSource, record: Record, jobs, pending):
    """What can be told before it begins."""
    for note in source.notes:
        print(f"note: {note}")
    if (args.size[0] % 8 or args.size[1] % 8) and not args.auto_size:
        print(f"note: --size {args.size[0]}x{args.size[1]}: models are trained at multiples of 8")
    several = sum(len(captions) > 1 for captions in source.captions)
    if several:
        print(f"note: {several} pictures have several captions; the first of them is taken")
    if args.focus and args.face_weight and not can_find_faces():
        print(f"note: {NO_FACES}")
    todo = {job.source for job in pending}
    changed = [j for j in jobs if j.source not in todo and record.entries[j.source]["stamp"] != j.stamp]
    if changed:
        name = printable(changed[0].source)
        print(f"note: {len(changed)} pictures have changed since, such as {name}; --overwrite makes all anew")
    gone = {name for name, entry in record.entries.items() if "files" in entry} - {job.source for job in jobs}
    if gone:
        name = printable(min(gone))
        print(f"note: {len(gone)} pictures are no longer in SRC, such as {name}; what was made of them stays")


def small_ones(args, record: Record, jobs) -> list[tuple[float, Job]]:
    """(how many times it is enlarged, picture) of those that are too small, the smallest first."""
    found = []
    for job in jobs:
        entry = record.entries[job.source]
        times = max((enlargement(box, entry["size"]) for box in entry.get("boxes", [])), default=0)
        if "files" in entry and is_small(times, args.max_enlarged):
            found.append((times, job))
    return sorted(found, key=lambda pair: (-pair[0], pair[1].source))


def say_after(args, record: Record, jobs, before, copies, reasons):
    """What was made, what was left out and why, what is worth a look."""
    small = small_ones(args, record, jobs)
    for times, job in small[:MOST_TOLD]:
        entry = record.entries[job.source]
        print(f"small: {printable(job.source)} ({entry['width']}x{entry['height']}), enlarged {times:.2g} times")
    if len(small) > MOST_TOLD:
        print(f"small: {len(small) - MOST_TOLD} others, enlarged less; --skip_small leaves all of them out")
    for copy, kept in copies:
        if copy.source not in reasons:
            print(f"the same picture, or nearly so: {printable(copy.source)} and {printable(kept.source)}")
    for name in sorted(reasons):
        print(f"left out: {printable(name)}: {printable(reasons[name])}")
    made = [record.entries[job.source] for job in jobs if "files" in record.entries[job.source]]
    files = [name for entry in made for name in entry["files"]]
    pictures = sum(name.endswith(".png") for name in files)
    told = [f"{pictures} pictures from {len(made)} of {len(made) + len(reasons)} files"]
    told += [f"{sum(len(entry['boxes']) > 1 for entry in made)} split"] if args.split else []
    told += [f"{pictures // 2} of them mirrored copies"] if args.flip else []
    told += [f"{len(files) - pictures} with a caption beside them"]
    told += [f"{before} of the files were done before" + ", nothing is new" * (before == len(made))] if before else []
    print(f"{args.DST}: {', '.join(told)}")


def main(arguments=None):
    args = parse_arguments(__doc__, arguments)
    source = open_pictures(args)
    record = open_record(args)
    captioners = load_asked(args, source, record)
    if args.overwrite:
        record.clear()
    jobs, reasons = plan(args, source, record)
    pending = [job for job in jobs if not record.is_done(job.source)]
    before = len(jobs) - len(pending)
    say_before(args, source, record, jobs, pending)
    for job in pending:
        record.entries[job.source] = {"source": job.source, "base": job.base}
    record.begin(recorded(args))
    if args.skip_duplicates:
        copies = find_copies(args, source, record, jobs)
        new = {job.source for job in pending}
        again = [(copy.source, kept.source) for copy, kept in copies if copy.source in new]
        reasons |= {copy: f"the same picture as {kept}, or nearly so" for copy, kept in again}
        pending = [job for job in pending if job.source not in reasons]
    reasons |= run_jobs(args, source, record, pending, captioners)
    for name in reasons.keys() & record.entries.keys():
        record.append({**record.entries[name], "left_out": reasons[name]})  # what may be called so is not ours
    if not args.skip_duplicates:
        copies = find_copies(args, source, record, jobs)
    reasons |= dict(problem.rsplit(": ", 1) for problem in source.problems)
    say_after(args, record, jobs, before, copies, reasons)
    if not any("files" in entry for entry in record.entries.values()):
        raise UserError(f"SRC {args.SRC}: none of its pictures can be used; the lines above say why")
    remarks = {job.source: f"enlarged {times:.2g} times" for times, job in small_ones(args, record, jobs)}
    remarks |= {copy.source: f"like {kept.source}" for copy, kept in copies}
    write_sheet(args, source, record, jobs, remarks)


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; to go on, run the same command again")
