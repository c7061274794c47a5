"""What the verbs of the command line need beside the core: options, output, reports, files of results."""
