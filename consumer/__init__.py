"""The consumer daemon: claims due jobs and hands their mail to the relay."""
