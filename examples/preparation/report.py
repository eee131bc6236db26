"""What prepare.py prints before and after a run."""

import argparse
import collections
from pathlib import Path

from examples.preparation.cutting import Job, describe_enlargement
from examples.preparation.focus import NO_FACES, can_find_faces
from examples.preparation.geometry import enlargement, is_small
from examples.preparation.option_effects import idle_notes, plain_options
from examples.preparation.options import default_options
from examples.preparation.record import Record, printable
from examples.preparation.remedies import is_cut, keeping_options, kept_area, percent
from hypernet.data.caption_remarks import caption_notes
from hypernet.data.image_source import ImageSource
from hypernet.utils.errors import MAX_MESSAGE, counted, one_line

MAX_SMALL = 12  # small images that are named
REMEDIES = {  # options that keep more of an image
    "--fit": "puts the whole image on a background",
    "--split": "makes several images of it",
    "--auto_size": "chooses a size for each image, for training with --aspect_buckets",
}


def print_notes(
    args: argparse.Namespace, source: ImageSource, record: Record, jobs: list[Job], pending: list[Job]
) -> None:
    """Print what may be a mistake, before the run begins."""
    notes = list(source.notes)
    notes += idle_notes(plain_options(vars(args)), default_options())
    if args.background == "auto" and not args.fit:
        notes.append("--background auto: no effect without --fit; transparent pixels become white")
    if (args.size[0] % 8 or args.size[1] % 8) and not (args.auto_size or args.keep_size):
        notes.append(f"--size {args.size[0]}x{args.size[1]}: training needs multiples of 8")
    if not args.caption:
        notes += caption_notes([captions[0] for captions in source.captions], source.captioned)
    several = sum(len(captions) > 1 for captions in source.captions)
    if several:
        notes.append(f"images with several captions: {several}; the first caption is used")
    templates = [Path(path).relative_to(args.SRC) for path in dict.fromkeys(source.template_files) if path]
    if missing := [path for path in templates if not (args.DST / path).exists()]:
        example, place = args.SRC / missing[0], args.DST / missing[0]
        notes.append(f"template files are not copied: {len(missing)}, such as {example}; copy it to {place}")
    if args.focus and args.face_weight and not can_find_faces():
        notes.append(NO_FACES)
    new = {job.source for job in pending}
    changed = [job for job in jobs if job.source not in new and record.entries[job.source]["stamp"] != job.stamp]
    if changed:
        example = printable(changed[0].source)
        notes.append(f"images changed since they were prepared: {len(changed)}, such as {example}; see --overwrite")
    gone = {name for name, entry in record.entries.items() if "files" in entry} - {job.source for job in jobs}
    if gone:
        example = printable(min(gone))
        notes.append(f"images no longer in SRC: {len(gone)}, such as {example}; what was made from them is kept")
    for note in notes:
        print(one_line(f"note: {note}", MAX_MESSAGE))


def find_small(args: argparse.Namespace, record: Record, jobs: list[Job]) -> list[tuple[float, Job]]:
    """Return (enlargement factor, job) for the prepared images that are too small, the smallest first."""
    found = []
    for job in jobs:
        entry = record.entries[job.source]
        factor = max((enlargement(box, entry["size"]) for box in entry.get("boxes", [])), default=0.0)
        if "files" in entry and is_small(factor, args.max_enlarged):
            found.append((factor, job))
    return sorted(found, key=lambda pair: (-pair[0], pair[1].source))


def describe_cut(args: argparse.Namespace, record: Record, jobs: list[Job]) -> str:
    """Return a line about the images from which much is cut, with the remedies; "" if there are none."""
    made = [entry for job in jobs if "files" in (entry := record.entries[job.source])]
    cut = sorted(filter(is_cut, made), key=kept_area)
    if not cut:
        return ""
    suited = collections.Counter(option for entry in cut for option in keeping_options(entry, args))
    remedies = [f"{option} {REMEDIES[option]}" for option, count in suited.items() if 2 * count >= len(cut)]
    if args.focus:
        remedies[0] = remedies[0].replace("--fit", "--fit instead of --focus")
    which = f"{len(cut)} of {counted(len(made), 'image')} lost a large part, such as {printable(cut[0]['source'])}"
    return f"cut: {which} ({percent(kept_area(cut[0]))} kept); {', '.join(remedies)}"


def print_report(
    args: argparse.Namespace,
    record: Record,
    jobs: list[Job],
    done_before: int,
    duplicates: list[tuple[Job, Job]],
    skipped: dict[str, str],
) -> None:
    """Print what was made, what was skipped and why, and which images deserve a look.

    Args:
        done_before: number of images prepared by earlier runs.
        duplicates: pairs of near-duplicates.
        skipped: image -> reason.
    """
    small = find_small(args, record, jobs)
    for factor, job in small[:MAX_SMALL]:
        entry = record.entries[job.source]
        print(f"small: {printable(job.source)} ({entry['width']}x{entry['height']}), {describe_enlargement(factor)}")
    if len(small) > MAX_SMALL:
        print(f"small: {len(small) - MAX_SMALL} more, enlarged less; --skip_small skips all of them")
    if cut := describe_cut(args, record, jobs):
        print(one_line(cut, MAX_MESSAGE))
    for job, kept in duplicates:
        if job.source not in skipped:
            print(f"near-duplicates: {printable(job.source)}, {printable(kept.source)}")
    for name in sorted(skipped):
        print(f"skipped: {printable(name)}: {printable(skipped[name])}")
    made = [record.entries[job.source] for job in jobs if "files" in record.entries[job.source]]
    files = [name for entry in made for name in entry["files"]]
    images = sum(name.endswith(".png") for name in files)
    parts = [f"{counted(images, 'image')} from {len(made)} of {counted(len(made) + len(skipped), 'file')}"]
    parts += [f"{images // 2} of them mirrored"] if args.flip else []
    parts += [f"{counted(sum(len(entry['boxes']) > 1 for entry in made), 'file')} split"] if args.split else []
    parts += [counted(len(files) - images, "caption file")]
    parts += [f"{counted(done_before, 'file')} done before"] if done_before else []
    parts += ["nothing new"] if done_before == len(made) and made else []
    print(f"{args.DST}: {', '.join(parts)}")
