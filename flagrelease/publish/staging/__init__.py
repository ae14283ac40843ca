"""Where the files of a release go while it is made under a disk budget: beside what is published, never into it."""
