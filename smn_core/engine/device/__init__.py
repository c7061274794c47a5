"""What a GPU needs beside the kernels: copies, captured forwards, the choice among ways."""
