"""Let the teacher of a distillation, a base after fine-tuning on solutions of all styles, solve training questions."""

from pathlib import Path

import torch
from proxycast.config.post_training_options import PostTraining
from proxycast.jobs import job
from proxycast.tables import fingerprint, write_table
from proxycast.training.miniature.post_training.course import read_course
from proxycast.training.miniature.post_training.post_train import post_train
from proxycast.training.miniature.post_training.teacher import write_as_teacher

with job(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    options, code = PostTraining(**snakemake.params.options), snakemake.params.code
    course = read_course(snakemake.params.course, options, snakemake.input.problems)
    folders = {recipe: Path(folder) for recipe, folder in snakemake.params.folders.items()}
    written = post_train(course, folders)
    solutions = write_as_teacher(course, *folders.values())
    write_table(solutions, Path(snakemake.output[0]), fingerprint(code, written, options.distillation))
