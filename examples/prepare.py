#!/usr/bin/env python
"""Turn raw images into a folder for training: crop, split, mirror and caption them.

    python examples/prepare.py raw_images my_images --size 512
    python examples/prepare.py raw_images my_images --size 768x512 --split --focus --flip
    python examples/prepare.py cutouts my_images --size 512 --fit --background auto
    python examples/prepare.py raw_images my_images --auto_size --caption blip
    python examples/prepare.py raw_images my_images --caption tagger --exclude_tags "text, watermark" --escape_brackets

The raw images are never changed. Images that cannot be used are skipped and listed. A sheet beside the new folder shows
each image before and after. To resume, run the same command again.
"""

import argparse
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

from tqdm.auto import tqdm

from examples.preparation.captions import Captioner, combine, load_captioners, needs_captions
from examples.preparation.cutting import (
    Job,
    Result,
    describe_enlargement,
    prepare_image,
    read_appearance,
    recorded_appearance,
)
from examples.preparation.option_effects import changed_options, describe, flag
from examples.preparation.options import default_options, parse_arguments, recorded_options
from examples.preparation.record import BaseNames, Record, output_stems
from examples.preparation.remedies import cut_remark
from examples.preparation.report import find_small, print_notes, print_report
from examples.preparation.sheet import write_sheet
from hypernet.cli.script import check_output_folder, run_script
from hypernet.data.captions import caption_from_name, read_any_encoding
from hypernet.data.folder_files import image_stem
from hypernet.data.image_io import map_in_threads
from hypernet.data.image_source import ImageSource, open_image_folder
from hypernet.data.near_duplicates import find_near_duplicates
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError


def open_images(args: argparse.Namespace) -> ImageSource:
    """Open SRC as the trainer would.

    Raises:
        UserError: if it contains no images, or links to DST.
    """
    rules = args.caption_column, args.filename_word_regex, args.filename_join_string
    source = open_image_folder(args.SRC, "SRC", *rules)
    folders = {Path(image["path"]).parent for image in source.images["image"][:]}
    inside = [folder for folder in sorted(folders) if folder.resolve().is_relative_to(args.DST.resolve())]
    if inside:
        raise UserError(f"DST {args.DST}: {inside[0]} in SRC links to it; name another folder")
    return source


def open_record(args: argparse.Namespace) -> Record:
    """Read the record of what earlier runs made in DST.

    Raises:
        UserError: if DST cannot be written, holds other files, or was made with other options.
    """
    check_output_folder(args.DST, f"DST {args.DST}")
    record = Record(args.DST)
    foreign = record.foreign_file()
    if foreign is not None:
        raise UserError(
            f"DST {args.DST}: it contains {foreign.name}, so it is not a folder of images; name a new folder"
        )
    changed = changed_options(record.options, recorded_options(args), default_options()) if record.options else {}
    if changed and not args.overwrite:
        names = ", ".join(f"{flag(name)} (was {describe(name, value)})" for name, value in changed.items())
        problem = f"it was made with other options: {names}"
        raise UserError(f"DST {args.DST}: {problem}; name another folder, or add --overwrite")
    return record


# --- Plan


def relative_paths(args: argparse.Namespace, source: ImageSource) -> list[str]:
    """Return the path of each image relative to SRC, with forward slashes."""
    return [Path(image["path"]).relative_to(args.SRC).as_posix() for image in source.images["image"][:]]


def written_caption(source: ImageSource, row: int) -> str | None:
    """Return an image's written caption; None if its only caption is its file name."""
    return source.captions[row][0] if source.captioned[row] else None


def load_needed_captioners(args: argparse.Namespace, source: ImageSource, record: Record) -> list[Captioner | None]:
    """Load the captioners if any new image needs a caption. Raises what `load_captioners` raises."""
    for row, path in enumerate(relative_paths(args, source)):
        is_new = args.overwrite or not record.is_done(path)
        if is_new and needs_captions(written_caption(source, row), args.existing_caption):
            return load_captioners(args)
    return []


def plan_jobs(args: argparse.Namespace, source: ImageSource, record: Record) -> tuple[list[Job], dict[str, str]]:
    """Return a job per image, and why the others get none, as path -> reason."""
    names, stamps = BaseNames(record, args.split, args.flip), source.stamps()
    jobs, skipped = [], {}
    for row, path in enumerate(relative_paths(args, source)):
        try:
            base = names.assign(path)
        except ValueError as error:
            skipped[path] = str(error)
            continue
        name_text = caption_from_name(image_stem(Path(path)), args.filename_word_regex, args.filename_join_string)
        stamp = "/".join(stamps[row].rsplit("/", 2)[1:])  # without the path
        jobs.append(Job(row, path, base, stamp, written_caption(source, row), name_text))
    return jobs, skipped


def find_duplicates(
    args: argparse.Namespace, source: ImageSource, record: Record, jobs: list[Job]
) -> list[tuple[Job, Job]]:
    """Return pairs of near-duplicates: (the one to skip, the one to keep).

    An image prepared earlier is kept, else the larger one. Images not prepared yet are read and compared only with
    --skip_duplicates.
    """
    pending = [job for job in jobs if not record.is_done(job.source)] if args.skip_duplicates else []
    seen = {job.source: recorded_appearance(record.entries[job.source]) for job in jobs if record.is_done(job.source)}
    appearances = map_in_threads(lambda job: read_appearance(job, source, args.background), pending)
    with contextlib.closing(appearances):
        bar = tqdm(appearances, total=len(pending), desc="Comparing images", disable=not pending)
        seen |= {job.source: appearance for appearance, job in zip(bar, pending) if appearance}
    known = [job for job in jobs if job.source in seen]
    known.sort(key=lambda job: (not record.is_done(job.source), -seen[job.source].width * seen[job.source].height))
    found = [seen[job.source] for job in known]
    aspects = [appearance.width / appearance.height for appearance in found]
    pairs = find_near_duplicates([appearance.thumbnail for appearance in found], aspects, args.same_threshold)
    return [(known[later], known[earlier]) for later, earlier in pairs]


# --- Run


def run_jobs(
    args: argparse.Namespace, source: ImageSource, record: Record, jobs: list[Job], captioners: list[Captioner | None]
) -> dict[str, str]:
    """Prepare images; return why others were skipped, as path -> reason."""
    skipped, has_models = {}, any(captioner is not None for captioner in captioners)

    def prepare(job: Job) -> Result:
        return prepare_image(job, source, args, has_models and needs_captions(job.text, args.existing_caption))

    with contextlib.closing(map_in_threads(prepare, jobs)) as results:  # closing cancels what has not begun
        for result in tqdm(results, total=len(jobs), desc="Preparing images", disable=not jobs):
            if result.reason:
                skipped[result.job.source] = result.reason
                continue
            result.entry["files"] += write_captions(args, result, captioners)
            record.append(result.entry)
    return skipped


def write_captions(args: argparse.Namespace, result: Result, captioners: list[Captioner | None]) -> list[str]:
    """Write the caption files of an image's outputs, unless they exist; return the names of all of them.

    None is needed where the trainer derives the same caption from the new file name.
    """
    stems = output_stems(result.job.base, len(result.entry["boxes"]), args.flip)
    copies, names, text = 2 if args.flip else 1, [], None
    for i, stem in enumerate(stems):
        path = args.DST / f"{stem}.txt"
        if i % copies == 0:  # a mirrored copy shares the caption
            text = (
                read_any_encoding(path).strip()
                if path.exists()
                else make_caption(args, result, captioners, i // copies)
            )
        if text is None and result.job.name_text != caption_from_name(Path(stem).name):
            text = result.job.name_text
        if path.exists() or text is not None:
            names.append(f"{stem}.txt")
        if not path.exists() and text is not None:
            with atomic_write(path) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    return names


def make_caption(args: argparse.Namespace, result: Result, captioners: list[Captioner | None], part: int) -> str | None:
    """Return the caption of one part of an image; None if its only caption is its file name."""
    job, generated = result.job, []
    if captioners and needs_captions(job.text, args.existing_caption):
        for captioner in captioners:
            generated.append(job.name_text if captioner is None else captioner(result.parts[part]))
    return combine(job.text, generated, args.existing_caption)


def find_remarks(
    args: argparse.Namespace, record: Record, jobs: list[Job], duplicates: list[tuple[Job, Job]]
) -> dict[str, str]:
    """Return the remarks that the sheet shows in red, as source image -> text."""
    remarks: dict[str, list[str]] = {job.source: [f"near-duplicate of {kept.source}"] for job, kept in duplicates}
    for job in jobs:
        if "files" in record.entries[job.source] and (remark := cut_remark(record.entries[job.source], args)):
            remarks.setdefault(job.source, []).append(remark)
    for factor, job in find_small(args, record, jobs):
        remarks.setdefault(job.source, []).append(describe_enlargement(factor))
    return {name: "; ".join(texts) for name, texts in remarks.items()}


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(__doc__, arguments)
    source = open_images(args)
    record = open_record(args)
    captioners = load_needed_captioners(args, source, record)
    if args.overwrite:
        record.clear()
    jobs, skipped = plan_jobs(args, source, record)
    pending = [job for job in jobs if not record.is_done(job.source)]
    done_before = len(jobs) - len(pending)
    print_notes(args, source, record, jobs, pending)
    for job in pending:
        record.entries[job.source] = {"source": job.source, "base": job.base}
    record.begin(recorded_options(args))
    if args.skip_duplicates:
        duplicates, new = find_duplicates(args, source, record, jobs), {job.source for job in pending}
        skipped |= {job.source: f"near-duplicate of {kept.source}" for job, kept in duplicates if job.source in new}
        pending = [job for job in pending if job.source not in skipped]
    skipped |= run_jobs(args, source, record, pending, captioners)
    for name in skipped.keys() & record.entries.keys():
        record.append({**record.entries[name], "left_out": skipped[name]})  # files with its base name are not ours
    if not args.skip_duplicates:
        duplicates = find_duplicates(args, source, record, jobs)
    skipped |= dict(problem.rsplit(": ", 1) for problem in source.problems)
    print_report(args, record, jobs, done_before, duplicates, skipped)
    if not any("files" in entry for entry in record.entries.values()):
        raise UserError(f"SRC {args.SRC}: none of its images can be used; the lines above say why")
    write_sheet(args, source, record, jobs, find_remarks(args, record, jobs, duplicates))


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; to resume, run the same command again")
