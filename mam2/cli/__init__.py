"""The command line: `verbs` names the commands, the other files hold one dataclass per command."""
