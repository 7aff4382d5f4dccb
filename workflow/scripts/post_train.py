"""Post-train one base of the miniature suite by all of the study's recipes."""

from pathlib import Path

import torch
from proxycast.config.post_training_options import PostTraining
from proxycast.jobs import job
from proxycast.tables import write_json
from proxycast.training.miniature.post_training.course import read_course
from proxycast.training.miniature.post_training.post_train import post_train

with job(snakemake.log[0]):
    torch.set_num_threads(snakemake.threads)
    options = PostTraining(**snakemake.params.options)
    course = read_course(snakemake.params.course, options, snakemake.input.problems, snakemake.input.teacher or None)
    folders = {recipe: Path(folder) for recipe, folder in snakemake.params.folders.items()}
    write_json(post_train(course, folders), Path(snakemake.output[0]))
