"""What a GPU needs beside the kernels: copies (transfer), captured forwards (graphs), what it allows (ways)."""
